//! Heads of networks that others made: one row for each, with the shapes that it is told from and how such networks were
//! given their pictures.

use crate::boxes::Suppression;
use crate::heads::Head;
use crate::letterbox::{Frame, GREY, Placement};
use crate::priors::{self, Priors};

/// One way of saying where objects are.
pub struct HeadRow {
    pub name: &'static str,
    pub about: &'static str,
    /// The head, if results have these shapes (without the batch) for an input of that height and width.
    pub of_shapes: fn(&[Vec<usize>], [usize; 2]) -> Option<Head>,
    pub pixels: Pixels,
    pub suppression: Suppression,
}

/// What a network expects of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pixels {
    pub frame: Frame,
    /// Blue first.
    pub bgr: bool,
    /// Of each channel, in the network's order, of bytes divided by 255.
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

/// 0 to 1, grey around it: Ultralytics.
const UNIT: Pixels = Pixels {
    frame: Frame { placement: Placement::Centre, fill: GREY },
    bgr: false,
    mean: [0.0; 3],
    std: [1.0; 3],
};
/// 0 to 255, blue first.
const YOLOX: Pixels = Pixels {
    frame: Frame { placement: Placement::TopLeft, fill: GREY },
    bgr: true,
    std: [1.0 / 255.0; 3],
    ..UNIT
};
/// Stretched to the network's shape.
const STRETCHED: Frame = Frame { placement: Placement::Stretch, fill: 0 };
const IMAGENET: Pixels =
    Pixels { frame: STRETCHED, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], ..UNIT };
/// -1 to 1.
const SIGNED: Pixels = Pixels { frame: STRETCHED, mean: [0.5; 3], std: [0.5; 3], ..UNIT };

const STRIDES: [usize; 3] = [8, 16, 32];

/// In the order in which they are tried.
pub const HEADS: &[HeadRow] = &[
    HeadRow {
        name: "yolox",
        about: "YOLOX: [cells, 5 + classes] of offsets in cells",
        of_shapes: |shapes, [h, w]| {
            let cells: usize = STRIDES.iter().map(|s| (h / s) * (w / s)).sum();
            let rows = matches!(shapes, [one] if matches!(*one.as_slice(), [n, k] if k > 5 && n == cells));
            rows.then(|| Head::Grid { strides: STRIDES.to_vec() })
        },
        pixels: YOLOX,
        suppression: Suppression::Greedy,
    },
    HeadRow {
        name: "yolov5",
        about: "YOLOv5: [boxes, 5 + classes]",
        of_shapes: |shapes, _| {
            matches!(shapes, [one] if matches!(*one.as_slice(), [n, k] if k > 5 && n > k))
                .then_some(Head::Rows)
        },
        pixels: UNIT,
        suppression: Suppression::Greedy,
    },
    HeadRow {
        name: "yolov8",
        about: "YOLOv8 and later: [4 + classes, boxes]; with masks [4 + classes + masks, boxes] and [masks, h, w]",
        of_shapes: |shapes, size| {
            let wide = matches!(shapes, [one, ..] if matches!(*one.as_slice(), [k, n] if k > 4 && n > k));
            Some(Head::Columns).filter(|head| wide && head.contents(shapes, size).is_some())
        },
        pixels: UNIT,
        suppression: Suppression::Greedy,
    },
    HeadRow {
        name: "ssd300",
        about: "SSD300 on ResNet (NVIDIA's): [4, 8732] and [1 + classes, 8732], or transposed",
        of_shapes: |shapes, size| with(priors::ssd300(), shapes, size).filter(|_| size == [300; 2]),
        pixels: IMAGENET,
        suppression: Suppression::Greedy,
    },
    HeadRow {
        name: "ssdlite",
        about: "SSDLite (torchvision's): [boxes, 4] and [boxes, 1 + classes], 3234 boxes at 320x320",
        of_shapes: |shapes, size| with(priors::ssdlite(size), shapes, size),
        pixels: SIGNED,
        suppression: Suppression::Greedy,
    },
    HeadRow {
        name: "ssd_mobilenet",
        about: "SSD on MobileNet (TensorFlow's): [boxes, 4] and [boxes, 1 + classes], 1917 boxes at 300x300",
        of_shapes: |shapes, size| with(priors::ssd_mobilenet(size), shapes, size),
        pixels: SIGNED,
        suppression: Suppression::Greedy,
    },
    HeadRow {
        name: "yolact",
        about: "YOLACT: [boxes, 4], [boxes, 1 + classes], [boxes, masks] and [masks, h, w]",
        of_shapes: |shapes, size| with(priors::yolact(size), shapes, size),
        // Means and deviations of ImageNet as bytes, as that repository rounds them.
        pixels: Pixels {
            mean: [123.68 / 255.0, 116.78 / 255.0, 103.94 / 255.0],
            std: [58.40 / 255.0, 57.12 / 255.0, 57.38 / 255.0],
            ..IMAGENET
        },
        suppression: Suppression::Fast,
    },
];

fn with(priors: Priors, shapes: &[Vec<usize>], size: [usize; 2]) -> Option<Head> {
    Some(Head::Priors(priors)).filter(|head| head.contents(shapes, size).is_some())
}

/// The row of that name.
pub fn find(name: &str) -> Option<&'static HeadRow> {
    HEADS.iter().find(|row| row.name == name)
}

/// The row of a head that a file describes, of a network with so many results.
pub fn of_head(head: &Head, results: usize) -> &'static HeadRow {
    let name = match head {
        Head::Anchors { .. } | Head::Rows => "yolov5",
        Head::Dfl { .. } | Head::Columns => "yolov8",
        Head::Grid { .. } => "yolox",
        Head::Priors(_) if results > 2 => "yolact",
        Head::Priors(_) => "ssd300",
    };
    find(name).expect("a row of that name")
}

/// The first row whose head fits, and the head.
pub fn of_shapes(shapes: &[Vec<usize>], size: [usize; 2]) -> Option<(&'static HeadRow, Head)> {
    HEADS.iter().find_map(|row| Some((row, (row.of_shapes)(shapes, size)?)))
}
