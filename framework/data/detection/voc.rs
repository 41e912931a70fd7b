//! Pascal VOC (Everingham et al., 2010): an XML file for each picture.
//!
//! ```text
//! DIR/Annotations/NAME.xml   DIR/JPEGImages/NAME.jpg   DIR/ImageSets/Main/{train,val}.txt (names; all without it)
//! DIR/NAME.xml               DIR/NAME.png
//! ```

use super::{BoxSet, Object, PICTURES, Part, files_in, has, read_text, size_of};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

pub(super) fn found_in(dir: &Path) -> bool {
    has(&dir.join("Annotations"), &["xml"]) || has(dir, &["xml"])
}

pub(super) fn read(dir: &Path, part: Part) -> Result<BoxSet> {
    let annotations = Some(dir.join("Annotations")).filter(|dir| dir.is_dir());
    let files = match (&annotations, list_of(dir, part)) {
        (Some(annotations), Some(list)) => named(annotations, &list)?,
        _ => files_in(annotations.as_deref().unwrap_or(dir), &["xml"])?,
    };
    let mut parsed = Vec::with_capacity(files.len());
    for file in files {
        let objects = objects_in(&read_text(&file)?, &file)?;
        parsed.push((picture_of(dir, &file)?, file, objects));
    }
    let mut classes: Vec<String> =
        parsed.iter().flat_map(|(.., found)| found.iter().map(|o| o.0.clone())).collect();
    classes.sort();
    classes.dedup();
    let mut set = BoxSet { classes: classes.clone(), ..BoxSet::default() };
    for (picture, file, found) in parsed {
        let size = size_of(&picture)?;
        let number = |name: &String| classes.binary_search(name).unwrap_or(0) as u32;
        let objects = found.iter().map(|(name, object)| Object { class: number(name), ..*object });
        set.push(picture, size, objects.collect::<Vec<_>>(), &file)?;
    }
    Ok(set)
}

/// The list of names of a part.
fn list_of(dir: &Path, part: Part) -> Option<PathBuf> {
    let names: &[&str] = match part {
        Part::Train => &["train", "trainval"],
        Part::Test => &["val", "test"],
    };
    let file = |name: &&str| dir.join("ImageSets/Main").join(format!("{name}.txt"));
    names.iter().map(file).find(|file| file.is_file())
}

fn named(annotations: &Path, list: &Path) -> Result<Vec<PathBuf>> {
    let text = read_text(list)?;
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    let file = |name: &str| {
        let plain = !name.contains(['/', '\\']);
        plain.then(|| annotations.join(format!("{name}.xml"))).ok_or_else(|| {
            Error::corrupt(list, format!("'{name}' is not the name of a file in {}", annotations.display()))
        })
    };
    names.map(file).collect()
}

/// The picture that bears an annotation's name.
fn picture_of(dir: &Path, file: &Path) -> Result<PathBuf> {
    let stem = file.file_stem().unwrap_or_default();
    let beside = file.parent().unwrap_or(dir);
    for folder in [&dir.join("JPEGImages"), beside, dir] {
        for extension in PICTURES.iter().flat_map(|e| [e.to_string(), e.to_ascii_uppercase()]) {
            // Not with_extension: names may have dots.
            let mut name = stem.to_os_string();
            name.push(format!(".{extension}"));
            let picture = folder.join(name);
            if picture.is_file() {
                return Ok(picture);
            }
        }
    }
    Err(Error::NotFound(format!(
        "{}: no picture {}.png, .jpg or .jpeg for it in {} or its JPEGImages",
        file.display(),
        stem.to_string_lossy(),
        dir.display()
    )))
}

/// Class names and boxes of an annotation.
fn objects_in(text: &str, file: &Path) -> Result<Vec<(String, Object)>> {
    let corrupt = |why: String| Error::corrupt(file, why);
    let document = roxmltree::Document::parse(text).map_err(|e| corrupt(e.to_string()))?;
    let root = document.root_element();
    if root.tag_name().name() != "annotation" {
        let name = root.tag_name().name().to_owned();
        return Err(Error::unsupported(
            file,
            format!("its root is <{name}>, not <annotation> as in Pascal VOC"),
        ));
    }
    let mut found = Vec::new();
    for object in root.children().filter(|node| node.has_tag_name("object")) {
        let line = document.text_pos_at(object.range().start).row;
        let missing = |what: &str| corrupt(format!("line {line}: an object without {what}"));
        let (_, name) =
            child(object, "name").filter(|(_, name)| !name.is_empty()).ok_or_else(|| missing("<name>"))?;
        let (bounds, _) = child(object, "bndbox").ok_or_else(|| missing("<bndbox>"))?;
        let mut corners = [0.0; 4];
        for (corner, key) in corners.iter_mut().zip(["xmin", "ymin", "xmax", "ymax"]) {
            let (_, text) = child(bounds, key).ok_or_else(|| missing(&format!("<{key}>")))?;
            *corner = text.parse::<f32>().ok().filter(|v| v.is_finite()).ok_or_else(|| {
                corrupt(format!("line {line}: <{key}> of '{name}' is '{text}', not a number"))
            })?;
        }
        let ignored = child(object, "difficult").is_some_and(|(_, text)| text == "1");
        let area = f64::from(corners[2] - corners[0]) * f64::from(corners[3] - corners[1]);
        found.push((name, Object { class: 0, corners, area, crowd: false, ignored }));
    }
    Ok(found)
}

/// The child of that name, and its text.
fn child<'a, 'i>(node: roxmltree::Node<'a, 'i>, name: &str) -> Option<(roxmltree::Node<'a, 'i>, String)> {
    let child = node.children().find(|child| child.has_tag_name(name))?;
    Some((child, child.text().unwrap_or_default().trim().to_owned()))
}
