//! Pictures with boxes: what annotation files say, in one form.
//!
//! ```text
//! voc | coco | yolo ─► BoxSet (pictures, flat boxes, classes) ─► tiles
//! ```
//! (`lacuna-pipelines` makes inputs of one size of them.)
//! A folder holds a training and a test part as `train` and `val` (or `valid`, `validation`, `test`), or as its format
//! has it; a folder of one part alone is both.

use crate::error::{Error, Result};
use crate::image_folder::test_dir;
use crate::images::{RgbImage8, load_image};
use std::ops::Range;
use std::path::{Path, PathBuf};

mod coco;
mod tiles;
mod voc;
mod yolo;

/// Most bytes of an annotation file.
pub const ANNOTATION_BYTES_MAX: u64 = 1 << 30;
/// Most classes.
pub const CLASSES_MAX: usize = 1 << 16;
/// By how many pixels a box may reach beyond its picture: it is cut. Annotators round, and count from 0 or 1.
pub const BEYOND_MAX: f32 = 2.0;

/// An object of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    pub class: u32,
    /// Left, top, right, bottom, in pixels of the picture, inside of it.
    pub corners: [f32; 4],
    /// In pixels: that of the outline where the annotation has one, else the box's.
    pub area: f64,
    /// A group of objects, which is no example to learn from.
    pub crowd: bool,
    /// Too difficult to count.
    pub ignored: bool,
}

/// A file, or a part of it, with a range of the set's objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub path: PathBuf,
    /// Left, top, right, bottom of the part that is meant; the whole if absent.
    pub part: Option<[usize; 4]>,
    pub objects: Range<usize>,
}

/// Pictures with objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BoxSet {
    pub pictures: Vec<Picture>,
    /// Those of a picture lie side by side.
    pub objects: Vec<Object>,
    pub classes: Vec<String>,
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Train,
    Test,
}

/// A way in which annotations are written.
pub struct Format {
    /// What its folder holds, for messages.
    pub holds: &'static str,
    found_in: fn(&Path) -> bool,
    read: fn(&Path, Part) -> Result<BoxSet>,
}

/// The formats, in the order they are looked for.
pub const FORMATS: &[Format] = &[
    Format { holds: "a JSON file of COCO", found_in: coco::found_in, read: coco::read },
    Format {
        holds: "images/ and labels/ with a .txt file for each picture, and data.yaml with names (Ultralytics)",
        found_in: yolo::found_in,
        read: yolo::read,
    },
    Format {
        holds: "Annotations/*.xml and JPEGImages/, or .xml files beside the pictures (Pascal VOC)",
        found_in: voc::found_in,
        read: voc::read,
    },
];

/// Whether a folder holds pictures with boxes.
pub fn found_in(dir: &Path) -> bool {
    let train = dir.join("train");
    let known = |dir: &Path| FORMATS.iter().any(|format| (format.found_in)(dir));
    known(dir) || known(&train) || test_dir(dir).is_some_and(|dir| known(&dir))
}

/// Opens a part of the set in `dir`, told by what the folder holds.
///
/// # Errors
/// Annotations that cannot be read, say nothing, or say what cannot be: a box outside of its picture, a class without a
/// name, a picture that is not there.
pub fn open(dir: &Path, part: Part) -> Result<BoxSet> {
    let sub = match part {
        Part::Train => Some(dir.join("train")).filter(|dir| dir.is_dir()),
        Part::Test => test_dir(dir),
    };
    let candidates = [Some(dir), sub.as_deref()];
    for dir in candidates.into_iter().flatten() {
        if let Some(format) = FORMATS.iter().find(|format| (format.found_in)(dir)) {
            let set = (format.read)(dir, part)?;
            if set.pictures.is_empty() {
                return Err(Error::NotFound(format!("{}: no pictures with boxes in it", dir.display())));
            }
            return Ok(set);
        }
    }
    let known: Vec<&str> = FORMATS.iter().map(|format| format.holds).collect();
    Err(Error::NotFound(format!(
        "{}: no pictures with boxes are found there; the folder, or train and val in it, should hold {}",
        dir.display(),
        known.join("; or ")
    )))
}

impl BoxSet {
    /// The objects of a picture.
    pub fn objects_of(&self, picture: usize) -> &[Object] {
        &self.objects[self.pictures[picture].objects.clone()]
    }

    /// Adds a picture of `w` x `h` pixels with objects, which are cut at its edges.
    ///
    /// # Errors
    /// A box that is no box, or lies outside of the picture. `path` and `what` say where.
    fn push(
        &mut self,
        picture: PathBuf,
        [w, h]: [usize; 2],
        objects: impl IntoIterator<Item = Object>,
        file: &Path,
    ) -> Result<()> {
        let first = self.objects.len();
        for (i, mut object) in objects.into_iter().enumerate() {
            let [x0, y0, x1, y1] = object.corners;
            let (right, bottom) = (w as f32, h as f32);
            let inside = x0 >= -BEYOND_MAX
                && y0 >= -BEYOND_MAX
                && x1 <= right + BEYOND_MAX
                && y1 <= bottom + BEYOND_MAX;
            object.corners = [x0.max(0.0), y0.max(0.0), x1.min(right), y1.min(bottom)];
            let [x0, y0, x1, y1] = object.corners;
            if !(inside && x1 > x0 && y1 > y0 && object.area.is_finite()) {
                let name = self.classes.get(object.class as usize).map_or("?", String::as_str);
                return Err(Error::corrupt(
                    file,
                    format!(
                        "box {i} ('{name}', from {x0}, {y0} to {x1}, {y1}) is empty or does not lie in the {w}x{h} \
                         picture {} (correct or remove it)",
                        picture.display()
                    ),
                ));
            }
            self.objects.push(object);
        }
        self.pictures.push(Picture { path: picture, part: None, objects: first..self.objects.len() });
        Ok(())
    }

    /// The same with classes numbered as in `classes`.
    ///
    /// # Errors
    /// Objects of a class that is not among them.
    pub fn with_classes(mut self, classes: &[String], dir: &Path) -> Result<BoxSet> {
        let places: Vec<Option<u32>> = self
            .classes
            .iter()
            .map(|name| classes.iter().position(|known| known == name).and_then(|at| u32::try_from(at).ok()))
            .collect();
        for object in &mut self.objects {
            let class = object.class as usize;
            object.class = places.get(class).copied().flatten().ok_or_else(|| {
                let name = self.classes.get(class).map_or("?", String::as_str);
                let known = classes.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
                let why =
                    format!("class '{name}' is not among the {} that are known ({known}...)", classes.len());
                Error::corrupt(dir, why)
            })?;
        }
        self.classes = classes.to_vec();
        Ok(self)
    }

    /// Pictures cut into tiles of `side` pixels, if given: see [`tiles`].
    pub fn tiled(self, side: Option<usize>) -> Result<BoxSet> {
        match side {
            Some(side) => tiles::cut(self, side),
            None => Ok(self),
        }
    }
}

/// Reads pictures; parts of a file that follow each other decode it once.
#[derive(Default)]
pub struct Reader {
    open: Option<(PathBuf, RgbImage8)>,
}

impl Reader {
    /// The pixels of a picture, or of the part that is meant.
    ///
    /// # Errors
    /// A file that is no picture, or smaller than its annotation says.
    pub fn read(&mut self, picture: &Picture) -> Result<RgbImage8> {
        let Some(part) = picture.part else { return load_image(&picture.path) };
        if self.open.as_ref().is_none_or(|(path, _)| *path != picture.path) {
            self.open = Some((picture.path.clone(), load_image(&picture.path)?));
        }
        match &self.open {
            Some((path, whole)) => part_of(whole, part, path),
            None => load_image(&picture.path),
        }
    }
}

fn part_of(whole: &RgbImage8, [x0, y0, x1, y1]: [usize; 4], path: &Path) -> Result<RgbImage8> {
    if x0 >= x1 || y0 >= y1 || x1 > whole.w || y1 > whole.h {
        let why = format!("its annotation is of a larger picture than {}x{}", whole.w, whole.h);
        return Err(Error::corrupt(path, why));
    }
    let row = |y: usize| &whole.pixels[(y * whole.w + x0) * 3..(y * whole.w + x1) * 3];
    Ok(RgbImage8 { h: y1 - y0, w: x1 - x0, pixels: (y0..y1).flat_map(row).copied().collect() })
}

/// The text of an annotation file.
fn read_text(path: &Path) -> Result<String> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if meta.len() > ANNOTATION_BYTES_MAX {
        let why = format!("{} bytes, at most {ANNOTATION_BYTES_MAX}", meta.len());
        return Err(Error::too_large(path, why));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|_| Error::corrupt(path, "it is not UTF-8 text"))
}

/// The files directly in a folder whose names end in one of `extensions`, in the order of their names.
fn files_in(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if extensions.contains(&extension.as_str()) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a folder has a file with one of these extensions directly in it.
fn has(dir: &Path, extensions: &[&str]) -> bool {
    files_in(dir, extensions).is_ok_and(|files| !files.is_empty())
}

const PICTURES: [&str; 3] = ["png", "jpg", "jpeg"];

/// Width and height of a picture as it is shown.
fn size_of(path: &Path) -> Result<[usize; 2]> {
    let [h, w] = crate::images::image_size(path)?;
    Ok([w, h])
}
