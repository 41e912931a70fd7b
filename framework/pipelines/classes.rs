//! Names of classes: what a file says of them, or those of COCO.

use lacuna_ir::Graph;

/// The names in the metadata, our own or Ultralytics', those of COCO for as many classes as its detectors have, or numbers.
///
/// # Errors
/// Metadata that makes no sense, or has names for another number of classes.
pub fn names(graph: &Graph, classes: usize) -> Result<Vec<String>, String> {
    let said = match (graph.metadata("lacuna.classes"), graph.metadata("names")) {
        (Some(text), _) => serde_json::from_str(text).map_err(|e| format!("metadata lacuna.classes: {e}"))?,
        // What others call "names" may be anything.
        (None, Some(text)) => ultralytics(text).filter(|names| names.len() == classes).unwrap_or_default(),
        (None, None) => Vec::new(),
    };
    match (said.len(), classes) {
        (0, 80) => Ok(COCO.iter().map(|&name| name.to_owned()).collect()),
        (0, 90) => Ok(coco_by_id()),
        (0, _) => Ok((0..classes).map(|i| i.to_string()).collect()),
        (n, _) if n == classes => Ok(said),
        (n, _) => Err(format!("metadata lacuna.classes has {n} names for {classes} classes")),
    }
}

/// `{0: 'person', 1: "driver's licence"}`, as Python writes it: the names, if they are numbered from 0.
fn ultralytics(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim_start();
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (number, after) = rest.split_once(':')?;
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (name, after) = after[1..].split_once(quote)?;
        if number.trim().parse() != Ok(names.len()) {
            return None;
        }
        names.push(name.to_owned());
        rest = after.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some(names)
}

/// Numbers of COCO's 90 that name nothing, less 1: detectors that count by them have an output for each all the same.
const UNUSED: [usize; 10] = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82];

fn coco_by_id() -> Vec<String> {
    let mut names = COCO.iter();
    let name = |i: usize| match UNUSED.contains(&i) {
        true => format!("unused {}", i + 1),
        false => names.next().map_or_else(|| i.to_string(), |&name| name.to_owned()),
    };
    (0..90).map(name).collect()
}

/// The categories of COCO (Lin et al., 2014, arXiv:1405.0312), in the order in which detectors count them.
pub const COCO: [&str; 80] = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
];
