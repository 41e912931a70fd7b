//! Image files: decoding with limits, bilinear resizing, and the way to a network's input.
//!
//! The header is read and checked before a pixel is allocated. Files that end before their
//! last pixel are errors, in JPEG too, where decoders like to fill the rest with grey.

use crate::error::{Error, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Most pixels in width and in height.
pub const IMAGE_SIDE_MAX: u32 = 16_384;
/// Most pixels in all.
pub const IMAGE_PIXELS_MAX: u64 = 64 << 20;
/// Most bytes of the file, and of the decoded image.
pub const IMAGE_BYTES_MAX: u64 = 256 << 20;

/// An image of 8-bit RGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage8 {
    pub h: usize,
    pub w: usize,
    /// `h * w * 3` bytes, row by row.
    pub pixels: Vec<u8>,
}

/// Decodes a PNG or JPEG file, told by its content. Grey becomes RGB, 16 bits become 8, transparency
/// is dropped, and the EXIF orientation is applied.
pub fn load_image(path: &Path) -> Result<RgbImage8> {
    decode_image(&read_file(path)?, path)
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::unsupported(path, "not a regular file"));
    }
    if meta.len() > IMAGE_BYTES_MAX {
        return Err(Error::too_large(path, format!("{} bytes, at most {IMAGE_BYTES_MAX}", meta.len())));
    }
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

/// As [`load_image`], from memory; `path` only names it in errors.
pub fn decode_image(bytes: &[u8], path: &Path) -> Result<RgbImage8> {
    if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        check_jpeg_end(bytes, path)?;
    }
    let mut decoder = decoder(bytes, path)?;
    // Orientation is a hint: where the EXIF block is damaged the image is shown as it is stored.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| decode_error(path, e))?;
    image.apply_orientation(orientation);
    let rgb = image.into_rgb8();
    Ok(RgbImage8 { h: rgb.height() as usize, w: rgb.width() as usize, pixels: rgb.into_raw() })
}

/// Height and width of a PNG or JPEG file as it is shown, from its header.
pub fn image_size(path: &Path) -> Result<[usize; 2]> {
    let bytes = read_file(path)?;
    let mut decoder = decoder(&bytes, path)?;
    let (w, h) = decoder.dimensions();
    let size = [h as usize, w as usize];
    let turned = [
        Orientation::Rotate90,
        Orientation::Rotate270,
        Orientation::Rotate90FlipH,
        Orientation::Rotate270FlipH,
    ];
    let turned = decoder.orientation().is_ok_and(|orientation| turned.contains(&orientation));
    Ok(if turned { [size[1], size[0]] } else { size })
}

/// Ready to decode, with its header checked.
fn decoder<'a>(bytes: &'a [u8], path: &Path) -> Result<impl ImageDecoder + 'a> {
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
        Ok(other) => return Err(Error::unsupported(path, format!("{other:?} images; use PNG or JPEG"))),
        Err(_) if bytes.len() < 8 => return Err(Error::truncated(path, format!("{} bytes", bytes.len()))),
        Err(_) => return Err(Error::unsupported(path, "it is neither PNG nor JPEG")),
    };
    let mut limits = Limits::default();
    limits.max_image_width = Some(IMAGE_SIDE_MAX);
    limits.max_image_height = Some(IMAGE_SIDE_MAX);
    limits.max_alloc = Some(IMAGE_BYTES_MAX);
    let mut reader = ImageReader::new(Cursor::new(bytes));
    reader.set_format(format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| decode_error(path, e))?;
    let (w, h) = decoder.dimensions();
    if u64::from(w) * u64::from(h) > IMAGE_PIXELS_MAX || decoder.total_bytes() > IMAGE_BYTES_MAX {
        let why = format!("{w}x{h} pixels, {} bytes decoded", decoder.total_bytes());
        return Err(Error::too_large(path, why));
    }
    Ok(decoder)
}

fn decode_error(path: &Path, e: ImageError) -> Error {
    match e {
        ImageError::Limits(e) => Error::too_large(path, e.to_string()),
        ImageError::Unsupported(e) => Error::unsupported(path, e.to_string()),
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::truncated(path, "the image data ends early")
        }
        ImageError::IoError(e) => Error::io(path, e),
        e => Error::corrupt(path, e.to_string()),
    }
}

/// Walks the JPEG markers (ITU T.81, annex B) to the end-of-image one; without it the file was cut.
fn check_jpeg_end(bytes: &[u8], path: &Path) -> Result<()> {
    let cut = || Error::truncated(path, "the JPEG has no end-of-image marker");
    let mut rest = bytes.get(2..).ok_or_else(cut)?;
    loop {
        // Entropy-coded data may stand before a marker; in it, 0xff is followed by 0 or a restart marker.
        let at = rest.iter().position(|&b| b == 0xff).ok_or_else(cut)?;
        rest = &rest[at + 1..];
        match *rest.first().ok_or_else(cut)? {
            0xd9 => return Ok(()),
            // Fill byte: the marker may start here.
            0xff => continue,
            0x00 | 0x01 | 0xd0..=0xd8 => rest = &rest[1..],
            _ => {
                let &[_, hi, lo, ..] = rest else { return Err(cut()) };
                let len = usize::from(u16::from_be_bytes([hi, lo]));
                rest = rest.get(1 + len..).ok_or_else(cut)?;
            }
        }
    }
}

/// Resizes with a triangle filter that widens when shrinking (bilinear with antialiasing), rounding
/// to 8 bits after the horizontal pass. Equals Pillow's `resize(.., BILINEAR)`, so torchvision's on
/// images, byte for byte; where Pillow 13 takes the vertical pass first (width grows while height
/// shrinks) values differ by at most 1.
pub fn resize(image: &RgbImage8, h: usize, w: usize) -> Result<RgbImage8> {
    check_size(h, w)?;
    if image.h == 0 || image.w == 0 || image.pixels.len() != image.h * image.w * 3 {
        return Err(Error::argument("image", format!("{}x{} without its pixels", image.h, image.w)));
    }
    let mut out = image.clone();
    if out.w != w {
        let taps = taps(out.w, w);
        let mut pixels = vec![0; out.h * w * 3];
        for (line, to) in out.pixels.chunks_exact(out.w * 3).zip(pixels.chunks_exact_mut(w * 3)) {
            for (tap, to) in taps.iter().zip(to.chunks_exact_mut(3)) {
                let from = &line[tap.range.start * 3..tap.range.end * 3];
                for (ch, to) in to.iter_mut().enumerate() {
                    *to = weigh(tap, from.iter().skip(ch).step_by(3));
                }
            }
        }
        out = RgbImage8 { h: out.h, w, pixels };
    }
    if out.h != h {
        let row = w * 3;
        let mut pixels = vec![0; h * row];
        for (tap, to) in taps(out.h, h).iter().zip(pixels.chunks_exact_mut(row)) {
            let from = &out.pixels[tap.range.start * row..tap.range.end * row];
            for (x, to) in to.iter_mut().enumerate() {
                *to = weigh(tap, from.iter().skip(x).step_by(row));
            }
        }
        out = RgbImage8 { h, w, pixels };
    }
    Ok(out)
}

fn check_size(h: usize, w: usize) -> Result<()> {
    let side = IMAGE_SIDE_MAX as usize;
    if !(1..=side).contains(&h) || !(1..=side).contains(&w) || (h * w) as u64 > IMAGE_PIXELS_MAX {
        return Err(Error::argument("size", format!("{h}x{w}: sides are 1 to {side}, 64 Mpx in all")));
    }
    Ok(())
}

/// Where one pixel of the result comes from, and its weights with [`WEIGHT_BITS`] after the point.
struct Tap {
    range: Range<usize>,
    weights: Vec<i32>,
}

const WEIGHT_BITS: u32 = 22;

fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let reach = scale.max(1.0);
    let tap = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let start = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(from);
        let triangle = |x: usize| (1.0 - ((x as f64 - centre + 0.5) * (1.0 / reach)).abs()).max(0.0);
        let sum: f64 = (start..end).map(triangle).sum();
        let fixed = |x| (triangle(x) * (1.0 / sum) * f64::from(1 << WEIGHT_BITS) + 0.5) as i32;
        Tap { range: start..end, weights: (start..end).map(fixed).collect() }
    };
    (0..to).map(tap).collect()
}

fn weigh<'a>(tap: &Tap, pixels: impl Iterator<Item = &'a u8>) -> u8 {
    let half = 1i32 << (WEIGHT_BITS - 1);
    let sum = tap.weights.iter().zip(pixels).fold(half, |sum, (&w, &p)| sum + w * i32::from(p));
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// The input of a network: resized to `h` x `w` and normalised, `[channels, h, w]` floats
/// `(pixel / 255 - mean) / std`. One channel is luma (ITU-R BT.601), three are red, green, blue;
/// `mean` and `std` have one value for each channel.
pub fn to_nchw(image: &RgbImage8, h: usize, w: usize, mean: &[f32], std: &[f32]) -> Result<Vec<f32>> {
    let channels = mean.len();
    if !matches!(channels, 1 | 3) || std.len() != channels {
        let n = std.len();
        return Err(Error::argument("mean and std", format!("{channels} and {n} values; 1 or 3 of each")));
    }
    if !mean.iter().all(|m| m.is_finite()) || !std.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(Error::argument("mean and std", "must be finite, and std above 0"));
    }
    let resized = resize(image, h, w)?;
    let mut pixels = vec![0; channels * h * w];
    to_channels(&resized, &mut pixels);
    let mut out = vec![0.0; channels * h * w];
    for (ch, plane) in out.chunks_exact_mut(h * w).enumerate() {
        for (to, pixel) in plane.iter_mut().zip(pixels.chunks_exact(channels)) {
            *to = (f32::from(pixel[ch]) / 255.0 - mean[ch]) / std[ch];
        }
    }
    Ok(out)
}

/// The pixels of an image with as many channels as `out` has room for: three are red, green, blue, one is luma (ITU-R
/// BT.601).
pub(crate) fn to_channels(image: &RgbImage8, out: &mut [u8]) {
    if out.len() == image.pixels.len() {
        return out.copy_from_slice(&image.pixels);
    }
    for (to, rgb) in out.iter_mut().zip(image.pixels.chunks_exact(3)) {
        *to = luma(rgb);
    }
}

/// 0.299 R + 0.587 G + 0.114 B with 16 bits after the point, rounded.
fn luma(rgb: &[u8]) -> u8 {
    let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

/// The PNG and JPEG files (by name) directly in a folder, sorted by name; for a file, itself.
pub fn image_files(path: &Path) -> Result<Vec<PathBuf>> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if meta.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let is_image = |p: &PathBuf| {
        let ext = p.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        matches!(ext.as_str(), "png" | "jpg" | "jpeg") && p.is_file()
    };
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry.map_err(|e| Error::io(path, e))?.path());
    }
    files.retain(is_image);
    files.sort();
    if files.is_empty() {
        return Err(Error::NotFound(format!(
            "{}: no .png, .jpg or .jpeg file in this folder",
            path.display()
        )));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A smooth picture that JPEG hardly changes.
    fn picture(h: usize, w: usize) -> RgbImage8 {
        let pixel = |i: usize| {
            let (y, x) = (i / w, i % w);
            [(x * 255 / w.max(2)) as u8, (y * 255 / h.max(2)) as u8, ((x + y) * 255 / (h + w)) as u8]
        };
        RgbImage8 { h, w, pixels: (0..h * w).flat_map(pixel).collect() }
    }

    fn encode(image: &RgbImage8, format: ImageFormat) -> Vec<u8> {
        let buffer = image::RgbImage::from_raw(image.w as u32, image.h as u32, image.pixels.clone()).unwrap();
        let mut bytes = Cursor::new(Vec::new());
        buffer.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn decode(bytes: &[u8]) -> Result<RgbImage8> {
        decode_image(bytes, Path::new("test"))
    }

    /// A JPEG with an EXIF block that says only the orientation.
    fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
        let tiff =
            [b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", &[orientation][..], &[0; 6]];
        let tiff = tiff.concat();
        let head = [&[0xff, 0xd8, 0xff, 0xe1, 0, (tiff.len() + 2) as u8][..], &tiff].concat();
        [&head[..], &jpeg[2..]].concat()
    }

    #[test]
    fn png_is_exact_and_jpeg_is_close() {
        let image = picture(37, 51);
        assert_eq!(decode(&encode(&image, ImageFormat::Png)).unwrap(), image);
        let jpeg = decode(&encode(&image, ImageFormat::Jpeg)).unwrap();
        assert_eq!((jpeg.h, jpeg.w), (37, 51));
        let worst = jpeg.pixels.iter().zip(&image.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!((1..40).contains(&worst), "largest difference {worst}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), encode(&image, ImageFormat::Png)).unwrap();
        assert_eq!(load_image(file.path()).unwrap(), image);
    }

    #[test]
    fn exif_orientation_turns_the_image() {
        let jpeg = encode(&picture(16, 32), ImageFormat::Jpeg);
        let plain = decode(&jpeg).unwrap();
        let turned = decode(&with_orientation(&jpeg, 6)).unwrap();
        assert_eq!((turned.h, turned.w), (32, 16));
        for (y, x) in [(0, 0), (3, 5), (31, 15)] {
            let from = ((15 - x) * 32 + y) * 3;
            assert_eq!(turned.pixels[(y * 16 + x) * 3..][..3], plain.pixels[from..][..3]);
        }
    }

    #[test]
    fn every_cut_is_an_error() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let image = picture(24, 24);
            let bytes = encode(&image, format);
            for len in 0..bytes.len() {
                let complete_png = |got: &RgbImage8| format == ImageFormat::Png && *got == image;
                match decode(&bytes[..len]) {
                    // Only the empty end chunk of a PNG may be missing: every pixel is there.
                    Ok(got) => assert!(complete_png(&got), "{format:?}: {len} of {} bytes", bytes.len()),
                    Err(Error::Truncated { .. } | Error::Corrupt { .. }) => {}
                    Err(e) => panic!("{format:?}, {len} of {} bytes: {e}", bytes.len()),
                }
            }
            // In the middle of the pixels it is known to be cut.
            let e = decode(&bytes[..bytes.len() - 30]).unwrap_err();
            assert!(matches!(e, Error::Truncated { .. }), "{format:?}: {e}");
        }
    }

    #[test]
    fn flipped_bytes_never_panic_and_png_finds_them() {
        let image = picture(24, 24);
        let png = encode(&image, ImageFormat::Png);
        let jpeg = encode(&image, ImageFormat::Jpeg);
        for at in 0..png.len() {
            let mut bad = png.clone();
            bad[at] ^= 0x5a;
            if let Ok(got) = decode(&bad) {
                assert_eq!(got, image, "byte {at} changed the image silently");
            }
        }
        for at in 0..jpeg.len() {
            for flip in [0x5a, 0xff, 0x01] {
                let mut bad = jpeg.clone();
                bad[at] ^= flip;
                let _ = decode(&bad); // no checksums in JPEG: any result but a panic
            }
        }
    }

    #[test]
    fn huge_claims_are_refused_before_allocation() {
        // A PNG header that claims w x h; its checksum is right.
        let png = |w: u32, h: u32| {
            let mut chunk = b"IHDR".to_vec();
            chunk.extend([w.to_be_bytes(), h.to_be_bytes()].concat());
            chunk.extend([8, 2, 0, 0, 0]);
            let mut crc = flate2::Crc::new();
            crc.update(&chunk);
            let tail = [&[0, 0, 0, 0][..], b"IDAT\x35\xaf\x06\x1e"].concat();
            [b"\x89PNG\r\n\x1a\n\0\0\0\x0d", &chunk[..], &crc.sum().to_be_bytes(), &tail].concat()
        };
        for (w, h) in
            [(16_385, 1), (1, 16_385), (16_384, 16_384), (u32::MAX >> 1, u32::MAX >> 1), (8192, 8193)]
        {
            let e = decode(&png(w, h)).unwrap_err();
            assert!(matches!(e, Error::TooLarge { .. }), "{w}x{h}: {e}");
        }
        let e = decode(&png(8192, 8192)).unwrap_err();
        assert!(matches!(e, Error::Truncated { .. } | Error::Corrupt { .. }), "at the limit: {e}");
        let mut jpeg = encode(&picture(8, 8), ImageFormat::Jpeg);
        let sof = jpeg.windows(2).position(|m| m == [0xff, 0xc0]).unwrap();
        jpeg[sof + 5..sof + 9].fill(0xff);
        let e = decode(&jpeg).unwrap_err();
        assert!(matches!(e, Error::TooLarge { .. }), "{e}");
    }

    #[test]
    fn other_files_are_named() {
        assert!(matches!(decode(b"GIF89a\x01\0\x01\0\0\0\0"), Err(Error::Unsupported { .. })));
        assert!(matches!(decode(b"just some text"), Err(Error::Unsupported { .. })));
        assert!(matches!(decode(b""), Err(Error::Truncated { .. })));
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(load_image(dir.path()), Err(Error::Unsupported { .. })));
        assert!(matches!(load_image(&dir.path().join("no.png")), Err(Error::Io { .. })));
    }

    #[test]
    fn resize_and_input_have_known_values() {
        let image = RgbImage8 { h: 1, w: 4, pixels: [0, 0, 0, 100, 0, 0, 200, 90, 0, 40, 0, 255].to_vec() };
        assert_eq!(resize(&image, 1, 4).unwrap(), image);
        // Halving at a border: three columns weigh 3, 3 and 1 sevenths.
        let half = resize(&image, 1, 2).unwrap();
        assert_eq!(half.pixels, [71, 13, 0, 117, 39, 109]);
        // Constant images stay constant at any size.
        let grey = RgbImage8 { h: 7, w: 5, pixels: vec![201; 105] };
        for (h, w) in [(1, 1), (3, 11), (50, 2)] {
            assert!(resize(&grey, h, w).unwrap().pixels.iter().all(|&p| p == 201));
        }
        assert_eq!(to_nchw(&image, 1, 4, &[0.5], &[0.5]).unwrap()[1], (30.0 / 255.0 - 0.5) / 0.5);
        let rgb = to_nchw(&image, 1, 4, &[0.0; 3], &[1.0, 1.0, 0.5]).unwrap();
        assert_eq!((rgb[2], rgb[4 + 2], rgb[8 + 3]), (200.0 / 255.0, 90.0 / 255.0, 2.0));
        assert!(to_nchw(&image, 1, 4, &[0.0; 2], &[1.0; 2]).is_err());
        assert!(to_nchw(&image, 1, 4, &[0.0], &[0.0]).is_err());
        assert!(resize(&image, 0, 4).is_err() && resize(&image, 16_385, 1).is_err());
        assert!(resize(&RgbImage8 { h: 2, w: 2, pixels: vec![] }, 1, 1).is_err());
    }

    #[test]
    fn folders_are_listed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.JPG", "a.png", "c.txt", "d.jpeg"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(dir.path().join("e.png")).unwrap();
        let names: Vec<_> =
            image_files(dir.path()).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["a.png", "b.JPG", "d.jpeg"]);
        assert_eq!(image_files(&dir.path().join("c.txt")).unwrap().len(), 1);
        assert!(matches!(image_files(&dir.path().join("e.png")), Err(Error::NotFound(_))));
        assert!(matches!(image_files(&dir.path().join("none")), Err(Error::Io { .. })));
    }
}
