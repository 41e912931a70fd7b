//! Pictures with boxes as inputs of a network: every picture in a rectangle of one size, with its boxes.

use crate::letterbox::{Letterbox, Placement, letterbox};
use lacuna_data::boxes::{BoxAugment, BoxColumn, Label};
use lacuna_data::detection::{self, BoxSet, Object, Part, Reader};
use lacuna_data::image_folder::SET_BYTES_MAX;
use lacuna_data::sets::Source;
use lacuna_data::{DataSet, Error, ImageSet, Result};
use std::path::Path;

/// How pictures become inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inputs {
    /// Height and width.
    pub size: [usize; 2],
    /// Side of the tiles that pictures are cut into first.
    pub tile: Option<usize>,
    /// What happens to training pictures.
    pub augment: BoxAugment,
}

/// Both parts of the set in `dir`, with the classes of its training part.
///
/// # Errors
/// Annotations or pictures that cannot be read, a class of the test part that is not in the training part, too many bytes.
pub fn load(dir: &Path, inputs: &Inputs) -> Result<DataSet> {
    let train = detection::open(dir, Part::Train)?.tiled(inputs.tile)?;
    let test = detection::open(dir, Part::Test)?.with_classes(&train.classes, dir)?.tiled(inputs.tile)?;
    let source = Source {
        name: dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned(),
        part: match inputs.tile {
            Some(side) => format!("{} training boxes in tiles of {side} pixels", train.objects.len()),
            None => format!("{} training boxes", train.objects.len()),
        },
        dir: dir.to_owned(),
        of: "images",
        train: train.pictures.len(),
        test: test.pictures.len(),
    };
    Ok(DataSet { train: image_set(&train, inputs)?, test: image_set(&test, inputs)?, source })
}

/// The pixels and boxes of a part, in memory.
pub fn image_set(set: &BoxSet, inputs: &Inputs) -> Result<ImageSet> {
    let [h, w] = inputs.size;
    let n = set.pictures.len();
    let each = h.checked_mul(w).and_then(|n| n.checked_mul(3)).unwrap_or(0);
    let bytes = (n as u64).saturating_mul(each as u64);
    if each == 0 || bytes > SET_BYTES_MAX {
        let path = set.pictures.first().map(|p| p.path.clone()).unwrap_or_default();
        let why = format!("{n} pictures of {h}x{w} are {bytes} bytes in memory, at most {SET_BYTES_MAX}");
        return Err(Error::TooLarge { path, why: format!("{why} (choose another size, or fewer pictures)") });
    }
    let mut images = Vec::with_capacity(n * each);
    let mut column = BoxColumn::new(inputs.augment);
    let mut reader = Reader::default();
    for picture in &set.pictures {
        let pixels = reader.read(picture)?;
        let (boxed, placed) = letterbox(&pixels, h, w, Placement::Centre)?;
        images.extend_from_slice(&boxed.pixels);
        column.push(set.objects[picture.objects.clone()].iter().map(|object| label(object, &placed)));
    }
    Ok(ImageSet {
        images,
        labels: vec![0; n],
        h,
        w,
        c: 3,
        classes: set.classes.clone(),
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
        mirror: true,
        boxes: Some(column),
    })
}

fn label(object: &Object, placed: &Letterbox) -> Label {
    let Letterbox { scale, origin, .. } = placed;
    let corners = [0, 1, 2, 3].map(|i| object.corners[i] * scale[i % 2] + origin[i % 2]);
    let area = object.area * f64::from(scale[0]) * f64::from(scale[1]);
    Label { class: object.class, corners, area, crowd: object.crowd, ignored: object.ignored }
}
