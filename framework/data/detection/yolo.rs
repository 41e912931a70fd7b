//! The folders that Ultralytics' YOLO trains on: a text file for each picture.
//!
//! ```text
//! DIR/data.yaml                 names of the classes
//! DIR/images/train/NAME.jpg     DIR/labels/train/NAME.txt     (and val; or train/images and train/labels)
//! ```
//! A line is `CLASS X Y W H`: the middle and the size of a box, in shares of the picture. A picture without a text file
//! has no objects. Of data.yaml only `names` is read, as a list or as numbers with names.

use super::{BoxSet, CLASSES_MAX, Object, PICTURES, Part, files_in, has, read_text, size_of};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

pub(super) fn found_in(dir: &Path) -> bool {
    folders(dir, Part::Train).is_some() || folders(dir, Part::Test).is_some()
}

/// Folders of pictures and of labels.
fn folders(dir: &Path, part: Part) -> Option<[PathBuf; 2]> {
    let parts: &[&str] = match part {
        Part::Train => &["train"],
        Part::Test => &["val", "valid", "validation", "test"],
    };
    let mut pairs: Vec<[PathBuf; 2]> = Vec::new();
    for part in parts {
        pairs.push(["images", "labels"].map(|kind| dir.join(kind).join(part)));
        pairs.push(["images", "labels"].map(|kind| dir.join(part).join(kind)));
    }
    pairs.push(["images", "labels"].map(|kind| dir.join(kind)));
    pairs.into_iter().find(|[images, labels]| has(images, &PICTURES) && labels.is_dir())
}

pub(super) fn read(dir: &Path, part: Part) -> Result<BoxSet> {
    let [images, labels] = folders(dir, part).ok_or_else(|| {
        Error::NotFound(format!("{}: no images and labels of its {part:?} part", dir.display()))
    })?;
    let mut set = BoxSet { classes: names(dir)?, ..BoxSet::default() };
    for picture in files_in(&images, &PICTURES)? {
        let mut name = picture.file_stem().unwrap_or_default().to_os_string();
        name.push(".txt");
        let file = labels.join(name);
        let [w, h] = size_of(&picture)?;
        let text = if file.is_file() { read_text(&file)? } else { String::new() };
        let mut objects = Vec::new();
        for (line, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            objects.push(
                object(text, [w as f32, h as f32], set.classes.len())
                    .map_err(|why| Error::corrupt(&file, format!("line {}: {why}", line + 1)))?,
            );
        }
        set.push(picture, [w, h], objects, &file)?;
    }
    Ok(set)
}

fn object(line: &str, [w, h]: [f32; 2], classes: usize) -> Result<Object, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[class, x, y, width, height] = words.as_slice() else {
        return Err(format!("{} words, not five: class, x, y, width, height", words.len()));
    };
    let class = class.parse::<u32>().map_err(|_| format!("'{class}' is not the number of a class"))?;
    if class as usize >= classes {
        return Err(format!("class {class}, and data.yaml names {classes}"));
    }
    let share = |text: &str| {
        let value = text.parse::<f32>().ok().filter(|v| (0.0..=1.0).contains(v));
        value.ok_or_else(|| format!("'{text}' is not a share of the picture, from 0 to 1"))
    };
    let (x, y, width, height) = (share(x)?, share(y)?, share(width)?, share(height)?);
    let corners =
        [(x - width / 2.0) * w, (y - height / 2.0) * h, (x + width / 2.0) * w, (y + height / 2.0) * h];
    let area = f64::from(width * w) * f64::from(height * h);
    Ok(Object { class, corners, area, crowd: false, ignored: false })
}

/// The names of the classes, from data.yaml (or the only .yaml file) in the folder or the one above.
fn names(dir: &Path) -> Result<Vec<String>> {
    let mut found = None;
    for dir in [Some(dir), dir.parent()].into_iter().flatten() {
        let files = files_in(dir, &["yaml", "yml"]).unwrap_or_default();
        let data = files.iter().find(|f| f.file_stem().is_some_and(|stem| stem == "data"));
        found = data.or(files.first().filter(|_| files.len() == 1)).cloned();
        if found.is_some() {
            break;
        }
    }
    let file = found.ok_or_else(|| {
        Error::NotFound(format!("{}: no data.yaml with the names of the classes in it", dir.display()))
    })?;
    names_in(&read_text(&file)?).map_err(|why| Error::corrupt(&file, why))
}

/// `names` of the forms `[a, b]`, lines `- a`, and lines `0: a`.
fn names_in(text: &str) -> Result<Vec<String>, String> {
    let mut lines = text.lines().map(|line| match line.find(" #") {
        Some(at) => line[..at].trim_end(),
        None => line.trim_end(),
    });
    let value = lines.find_map(|line| line.strip_prefix("names:")).ok_or("it has no `names`")?.trim();
    let plain = |text: &str| text.trim().trim_matches(['\'', '"']).to_owned();
    let mut names = Vec::new();
    if let Some(list) = value.strip_prefix('[') {
        let list = list.strip_suffix(']').ok_or("`names` is a list that does not end on its line")?;
        names.extend(list.split(',').map(plain));
    } else if value.is_empty() {
        for line in lines.filter(|line| !line.trim().is_empty()) {
            if !line.starts_with([' ', '-']) {
                break;
            }
            let item = line.trim();
            let name = match item.strip_prefix("- ") {
                Some(name) => name,
                None => {
                    let (number, name) =
                        item.split_once(':').ok_or_else(|| format!("`names` has the line '{item}'"))?;
                    if number.trim().parse() != Ok(names.len()) {
                        return Err(format!("`names` has '{item}' where {} should stand", names.len()));
                    }
                    name
                }
            };
            names.push(plain(name));
        }
    } else {
        return Err(format!("`names: {value}` is neither a list nor numbers with names"));
    }
    match names.len() {
        n if n == 0 || n > CLASSES_MAX || names.iter().any(String::is_empty) => {
            Err(format!("`names` has {n} names or an empty one; 1 to {CLASSES_MAX} are expected"))
        }
        _ => Ok(names),
    }
}
