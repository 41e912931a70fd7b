//! From folders to inputs of a model whose file says nothing about its task: images, or ready tensors.

use crate::error::{Failure, Result};
use lacuna_data::image_folder::class_folders;
use lacuna_data::images::{RgbImage8, image_files, load_image, resize, to_nchw};
use lacuna_ir::{DType, Dim, Graph, Tensor};
use lacuna_train::checkpoint::read_safetensors_metadata;
use std::path::{Path, PathBuf};

/// Height and width where the model leaves them open.
const SIDE: usize = 224;

/// How images become the one input of a model.
pub struct ImageInput {
    h: usize,
    w: usize,
    channels_last: bool,
    bgr: bool,
    shorter_side: Option<usize>,
    mean: Vec<f32>,
    std: Vec<f32>,
}

// What the command line says of images. (Not a doc comment: clap would take it for what the verb does.)
#[derive(clap::Args, Debug, Clone)]
pub struct ImageOptions {
    /// Mean of each channel, of pixels in 0..1, where the model file does not say it
    #[arg(long, value_delimiter = ',')]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, likewise (1/255 = 0.00392157 leaves pixels in 0..255)
    #[arg(long, value_delimiter = ',')]
    pub std: Option<Vec<f32>>,
    /// The model takes blue, green, red
    #[arg(long)]
    pub bgr: bool,
    /// Height and width of images, where the model leaves them open
    #[arg(long, value_name = "H,W", value_parser = height_and_width)]
    pub size: Option<[usize; 2]>,
    /// Shrink or enlarge images until the shorter side is this long and cut out the middle, as models of ImageNet are
    /// evaluated; without it images are stretched to the model's size
    #[arg(long, value_name = "SIDE", value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub resize: Option<u32>,
}

/// `H,W`
pub fn height_and_width(text: &str) -> Result<[usize; 2], String> {
    let (h, w) = text.split_once(',').ok_or("not height,width")?;
    let side = |text: &str| text.trim().parse::<usize>().map_err(|e| e.to_string());
    Ok([side(h)?, side(w)?])
}

impl ImageInput {
    /// Errors: the model does not take one f32 image of one or three channels; mean or std are unknown.
    pub fn new(g: &Graph, path: &Path, options: &ImageOptions) -> Result<ImageInput> {
        let misfit = |why: &str| {
            Failure::input(format!(
                "{}: does not take images: {why} (give .safetensors files)",
                path.display()
            ))
        };
        let &[input] = g.inputs.as_slice() else {
            return Err(misfit(&format!("it has {} inputs", g.inputs.len())));
        };
        let &[_, a, b, c] = g.shape(input) else { return Err(misfit("its input has not four dimensions")) };
        if g.value_dtype[input] != DType::F32 {
            return Err(misfit("its input is not f32"));
        }
        let is_channels = |d: Dim| matches!(d.fixed(), Some(1 | 3));
        let (channels, h, w, channels_last) = match (is_channels(a), is_channels(c)) {
            (true, _) => (a, b, c, false),
            (false, true) => (c, a, b, true),
            _ => return Err(misfit("no dimension of its input is 1 or 3 channels")),
        };
        let size = |d: Dim, given: usize| d.fixed().map_or(given, |n| n as usize);
        let given = options.size.unwrap_or([SIDE; 2]);
        let channels = size(channels, 0);
        Ok(ImageInput {
            h: size(h, given[0]),
            w: size(w, given[1]),
            channels_last,
            bgr: options.bgr,
            shorter_side: options.resize.map(|n| n as usize),
            mean: per_channel(g, path, "mean", options.mean.as_deref(), channels)?,
            std: per_channel(g, path, "std", options.std.as_deref(), channels)?,
        })
    }

    /// One image as the input of a run of batch one.
    pub fn load(&self, file: &Path) -> Result<Tensor> {
        let (h, w, channels) = (self.h, self.w, self.mean.len());
        let mut image = load_image(file)?;
        if let Some(side) = self.shorter_side {
            image = centre(&image, side, h, w)?;
        }
        let mut x = to_nchw(&image, h, w, &self.mean, &self.std)?;
        if self.bgr && channels == 3 {
            let (red, rest) = x.split_at_mut(h * w);
            red.swap_with_slice(&mut rest[h * w..]);
        }
        if !self.channels_last {
            return Ok(Tensor::from_f32(&[1, channels, h, w], x));
        }
        let pixels = (0..h * w * channels).map(|i| x[i % channels * h * w + i / channels]).collect();
        Ok(Tensor::from_f32(&[1, h, w, channels], pixels))
    }
}

pub fn metadata_error(path: &Path, key: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::input(format!("{}: metadata lacuna.{key}: {why}", path.display()))
}

/// `mean` or `std` of each channel: what is `given`, or what the model file says. One number is every channel's.
pub fn per_channel(
    g: &Graph,
    path: &Path,
    key: &str,
    given: Option<&[f32]>,
    channels: usize,
) -> Result<Vec<f32>> {
    let values: Vec<f32> = match (given, g.metadata(&format!("lacuna.{key}"))) {
        (Some(values), _) => values.to_vec(),
        (None, Some(text)) => serde_json::from_str(text).map_err(|e| metadata_error(path, key, &e))?,
        (None, None) => return Err(metadata_error(path, key, &format!("absent (give --{key})"))),
    };
    match values.len() {
        1 => Ok(vec![values[0]; channels]),
        n if n == channels => Ok(values),
        n => Err(metadata_error(path, key, &format!("{n} values for {channels} channels (give --{key})"))),
    }
}

/// The middle `h` x `w` pixels (or as many as there are) of the image resized to a shorter side of `side`.
fn centre(image: &RgbImage8, side: usize, h: usize, w: usize) -> Result<RgbImage8> {
    let shorter = image.h.min(image.w).max(1);
    let scaled = |n: usize| (n * side + shorter / 2) / shorter;
    let image = resize(image, scaled(image.h), scaled(image.w))?;
    let (h, w) = (h.min(image.h), w.min(image.w));
    let (top, left) = ((image.h - h) / 2, (image.w - w) / 2);
    let row = |y: usize| &image.pixels[((top + y) * image.w + left) * 3..][..w * 3];
    Ok(RgbImage8 { h, w, pixels: (0..h).flat_map(row).copied().collect() })
}

/// Up to `limit` samples of a folder: its images, evenly spread over it if there are more; or, in a folder of
/// .safetensors files, one run's inputs each, by their names.
pub fn load_samples(
    g: &Graph,
    model: &Path,
    folder: &Path,
    limit: usize,
    options: &ImageOptions,
) -> Result<Vec<Vec<Tensor>>> {
    let tensors = tensor_files(folder)?;
    if !tensors.is_empty() {
        return spread(tensors, limit).iter().map(|file| read_inputs(g, file)).collect();
    }
    let input = ImageInput::new(g, model, options)?;
    spread(image_files(folder)?, limit).iter().map(|file| Ok(vec![input.load(file)?])).collect()
}

fn spread(files: Vec<PathBuf>, limit: usize) -> Vec<PathBuf> {
    let (n, take) = (files.len(), limit.min(files.len()));
    (0..take).map(|i| files[i * n / take].clone()).collect()
}

fn tensor_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Failure::io(folder, e))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Failure::io(folder, e))?.path();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Floats as they are; integers from the same numbers in floats, if whole.
fn read_inputs(g: &Graph, file: &Path) -> Result<Vec<Tensor>> {
    let (tensors, _) = read_safetensors_metadata(file)?;
    let one = |&v: &lacuna_ir::ValueId| {
        let name = &g.value_name[v];
        let missing =
            || Failure::input(format!("{}: has no tensor '{name}', an input of the model", file.display()));
        let t = tensors.iter().find(|t| t.name == *name).ok_or_else(missing)?;
        Ok(match g.value_dtype[v] {
            DType::I64 => Tensor::from_i64(&t.dims, t.data.iter().map(|&x| x as i64).collect()),
            DType::I32 => Tensor::from_i32(&t.dims, t.data.iter().map(|&x| x as i32).collect()),
            DType::F32 => Tensor::from_f32(&t.dims, t.data.clone()),
            other => {
                return Err(Failure::input(format!("{}: input '{name}' is {other}", file.display())));
            }
        })
    };
    g.inputs.iter().map(one).collect()
}

/// A folder with one folder of images per class. Folders that are called by numbers hold the classes of these
/// numbers; others are numbered in the order of their names.
pub fn labelled(folder: &Path) -> Result<Vec<(PathBuf, usize)>> {
    let classes = class_folders(folder).map_err(|e| Failure::input(e.to_string()))?;
    let numbers: Option<Vec<usize>> = classes.iter().map(|name| name.parse().ok()).collect();
    let numbers = numbers.unwrap_or_else(|| (0..classes.len()).collect());
    let mut images = Vec::new();
    for (class, number) in classes.iter().zip(numbers) {
        images.extend(image_files(&folder.join(class))?.into_iter().map(|file| (file, number)));
    }
    Ok(images)
}
