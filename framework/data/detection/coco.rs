//! COCO (Lin et al., 2014, arXiv:1405.0312): one JSON file for all pictures.
//!
//! ```text
//! DIR/annotations/instances_train2017.json   DIR/train2017/NAME.jpg
//! DIR/annotations.json                       DIR/NAME.jpg (file_name may have folders)
//! ```

use super::{BoxSet, Object, Part, files_in, read_text};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

#[derive(Deserialize)]
struct File {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
    file_name: String,
    width: u32,
    height: u32,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: i64,
    category_id: i64,
    /// Left, top, width, height.
    bbox: [f64; 4],
    area: Option<f64>,
    #[serde(default)]
    iscrowd: u8,
    #[serde(default)]
    ignore: u8,
}

#[derive(Deserialize)]
struct Category {
    id: i64,
    name: String,
}

pub(super) fn found_in(dir: &Path) -> bool {
    file_of(dir, Part::Train).is_some() || file_of(dir, Part::Test).is_some()
}

/// The annotations of a part: the file that is named after it, or the only one.
fn file_of(dir: &Path, part: Part) -> Option<PathBuf> {
    let words: &[&str] = match part {
        Part::Train => &["train"],
        Part::Test => &["val", "test"],
    };
    let mut all = files_in(&dir.join("annotations"), &["json"]).unwrap_or_default();
    all.extend(files_in(dir, &["json"]).unwrap_or_default());
    let name =
        |path: &PathBuf| path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    all.retain(|path| {
        let name = name(path);
        name.starts_with("instances") || name.contains("annotations")
    });
    let named = words.iter().find_map(|word| all.iter().find(|path| name(path).contains(word)));
    named.cloned().or_else(|| Some(all).filter(|all| all.len() == 1).and_then(|mut all| all.pop()))
}

pub(super) fn read(dir: &Path, part: Part) -> Result<BoxSet> {
    let file = file_of(dir, part)
        .ok_or_else(|| Error::NotFound(format!("{}: no JSON file for its {part:?} part", dir.display())))?;
    let text = read_text(&file)?;
    let File { mut images, annotations, mut categories } = serde_json::from_str(&text)
        .map_err(|e| Error::corrupt(&file, format!("not as COCO writes it: {e}")))?;
    // Classes are counted in the order of the categories' ids.
    categories.sort_by_key(|category| category.id);
    images.sort_by_key(|image| image.id);
    let class_of: BTreeMap<i64, u32> =
        categories.iter().zip(0..).map(|(category, class)| (category.id, class)).collect();
    let mut objects: BTreeMap<i64, Vec<Object>> = images.iter().map(|image| (image.id, Vec::new())).collect();
    if class_of.len() != categories.len() || objects.len() != images.len() {
        return Err(Error::corrupt(&file, "an id of an image or a category is given twice"));
    }
    for (i, a) in annotations.iter().enumerate() {
        let stray = |what: &str, id: i64| {
            Error::corrupt(&file, format!("annotation {i} is of {what} {id}, which is not there"))
        };
        let class = *class_of.get(&a.category_id).ok_or_else(|| stray("category", a.category_id))?;
        let of_image = objects.get_mut(&a.image_id).ok_or_else(|| stray("image", a.image_id))?;
        let [x, y, w, h] = a.bbox;
        // The published files have a few boxes without width or height.
        if w == 0.0 || h == 0.0 {
            continue;
        }
        let corners = [x, y, x + w, y + h].map(|v| v as f32);
        let (crowd, ignored) = (a.iscrowd != 0, a.ignore != 0);
        of_image.push(Object { class, corners, area: a.area.unwrap_or(w * h), crowd, ignored });
    }
    let mut set = BoxSet {
        classes: categories.into_iter().map(|category| category.name).collect(),
        ..BoxSet::default()
    };
    for image in &images {
        let picture = picture_of(dir, &file, &image.file_name)?;
        let size = [image.width as usize, image.height as usize];
        set.push(picture, size, objects.remove(&image.id).unwrap_or_default(), &file)?;
    }
    Ok(set)
}

/// Where the picture lies: below the folder, or in one named as the file is (`instances_val2017.json`: `val2017`).
fn picture_of(dir: &Path, file: &Path, name: &str) -> Result<PathBuf> {
    let relative = Path::new(name);
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::corrupt(file, format!("file_name '{name}' does not lie below the folder")));
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let of_part = stem.rsplit('_').next().unwrap_or_default();
    let places = [
        dir.join(relative),
        dir.join("images").join(relative),
        dir.join(of_part).join(relative),
        dir.join("images").join(of_part).join(relative),
    ];
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let what = format!("{}: picture '{name}' is not in {}", file.display(), dir.display());
        Error::NotFound(format!("{what}, its images or {of_part}"))
    })
}
