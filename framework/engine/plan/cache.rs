//! What took time to find, on disk: small text files.
//!
//! Measured choices, one file per model, machine and binding:
//!
//! ```text
//! lacuna kernels 3
//! <key, 32 hexadecimal digits>
//! images <of a batch at a time, 0 for all>[ apart]
//! <kernel> rows|cols|channels <block> <threads> <what was measured>      one line per layer
//! end <layers>
//! ```
//! The key is a hash of all that a choice rests on: every layer's geometry and weights, the instruction set, whether
//! bfloat16 was asked for, the number of threads, the table of kernels and the engine's version. A file that does not read as this, byte for
//! byte, is as good as none and is written anew; a choice from a file can make a run slow but never wrong.
//!
//! Orders of channels, one file per model:
//!
//! ```text
//! lacuna orders 1
//! <key>
//! <class> <its channels, in their new order>      one line per class that has one
//! end <classes that have one>
//! ```
//! The key is a hash of the sparse integer layers' weights. Each class that may have an order is given its own channels in any
//! order or keeps its own: so a file that is not what was written can only make a run slow, too.

use super::choose::{How, Known, Pick};
use super::weights::{Request, Source};
use super::{Plan, Split, StepKind};
use crate::batch::Way;
use crate::kernels::CONV_KERNELS;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::{env, fs, io, process};

const HEAD: &str = "lacuna kernels 3";
const ORDERS_HEAD: &str = "lacuna orders 1";
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// `LACUNA_CACHE`, or `lacuna` in the user's cache folder. None if there is no such folder, or `LACUNA_CACHE` is empty.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).map(PathBuf::from);
    match set("LACUNA_CACHE") {
        Some(folder) => Some(folder).filter(|f| !f.as_os_str().is_empty()),
        None => {
            let xdg = set("XDG_CACHE_HOME").filter(|f| f.is_absolute());
            let user = xdg.or_else(|| Some(set("HOME").filter(|h| h.is_absolute())?.join(".cache")))?;
            Some(user.join("lacuna"))
        }
    }
}

/// What the choices for these layers are filed under.
pub fn key(layers: &[Request], sources: &[Source], how: &How<'_>) -> u128 {
    let mut hash = Hash::default();
    hash.bytes(env!("CARGO_PKG_VERSION").as_bytes());
    hash.bytes(how.target.isa.name().as_bytes());
    hash.bytes(&[how.choice as u8, u8::from(how.target.bf16)]);
    hash.bytes(&how.target.threads.to_le_bytes());
    CONV_KERNELS.iter().for_each(|kernel| hash.bytes(kernel.name.as_bytes()));
    for (layer, source) in layers.iter().zip(sources) {
        hash.bytes(format!("{:?}", layer.geom).as_bytes());
        hash.bytes(&[u8::from(layer.banded)]);
        hash.bytes(source.stored());
    }
    hash.finish()
}

/// What the orders of channels are filed under, for layers with these weights and window dims.
pub fn orders_key<'a>(layers: impl Iterator<Item = (&'a [i8], [usize; 3])>) -> u128 {
    let mut hash = Hash::default();
    hash.bytes(env!("CARGO_PKG_VERSION").as_bytes());
    for (weights, dims) in layers {
        hash.bytes(bytemuck::cast_slice(&dims));
        hash.bytes(bytemuck::cast_slice(weights));
    }
    hash.finish()
}

/// Row `i` is the order of class `i`, if it has one. `channels` says how many it has if it may be given one.
pub fn load_orders(folder: &Path, key: u128, channels: &[Option<usize>]) -> Option<Vec<Option<Vec<u32>>>> {
    parse_orders(&read(&path(folder, key, "orders"))?, key, channels)
}

fn parse_orders(text: &str, key: u128, channels: &[Option<usize>]) -> Option<Vec<Option<Vec<u32>>>> {
    let mut lines = text.lines();
    if lines.next()? != ORDERS_HEAD || lines.next()? != format!("{key:032x}") {
        return None;
    }
    let mut orders: Vec<Option<Vec<u32>>> = vec![None; channels.len()];
    loop {
        let line = lines.next()?;
        if let Some(count) = line.strip_prefix("end ") {
            let whole = count.parse() == Ok(orders.iter().flatten().count()) && lines.next().is_none();
            return whole.then_some(orders);
        }
        let mut words = line.split(' ');
        let class: usize = words.next()?.parse().ok()?;
        let order: Vec<u32> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        let is_order =
            (*channels.get(class)?)? == order.len() && sorted.into_iter().eq(0..order.len() as u32);
        is_order.then(|| orders[class] = Some(order))?;
    }
}

/// Keeps the orders of channels. A cache that cannot be written is no error.
pub fn store_orders(folder: &Path, key: u128, orders: &[Option<Vec<u32>>]) {
    let _ = write(folder, &path(folder, key, "orders"), &orders_text(key, orders));
}

fn orders_text(key: u128, orders: &[Option<Vec<u32>>]) -> String {
    let mut text = format!("{ORDERS_HEAD}\n{key:032x}\n");
    for (class, order) in orders.iter().enumerate().filter_map(|(i, order)| Some((i, order.as_ref()?))) {
        let _ = write!(text, "{class}");
        order.iter().for_each(|channel| {
            let _ = write!(text, " {channel}");
        });
        text.push('\n');
    }
    let _ = writeln!(text, "end {}", orders.iter().flatten().count());
    text
}

/// What was measured before.
pub struct Kept {
    pub layers: Vec<Known>,
    pub way: Way,
}

/// What was measured for these many layers, if a file says so.
pub fn load(folder: &Path, key: u128, layers: usize) -> Option<Kept> {
    parse(&read(&path(folder, key, "kernels"))?, key, layers)
}

fn read(path: &Path) -> Option<String> {
    let small = fs::metadata(path).ok()?.len() <= FILE_BYTES_MAX;
    small.then(|| fs::read_to_string(path).ok())?
}

fn parse(text: &str, key: u128, layers: usize) -> Option<Kept> {
    let mut lines = text.lines();
    if lines.next()? != HEAD || lines.next()? != format!("{key:032x}") {
        return None;
    }
    let way = lines.next()?.strip_prefix("images ")?;
    let (images, apart) = way.strip_suffix(" apart").map_or((way, false), |images| (images, true));
    let way = Way { images: images.parse().ok()?, apart };
    let known: Vec<Known> = (0..layers).map(|_| known(lines.next()?)).collect::<Option<_>>()?;
    (lines.next()? == format!("end {layers}") && lines.next().is_none())
        .then_some(Kept { layers: known, way })
}

fn known(line: &str) -> Option<Known> {
    let mut words = line.splitn(5, ' ');
    let name = words.next()?;
    let kernel = CONV_KERNELS.iter().position(|k| k.name == name)?;
    let (split, block, parts) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let granule = CONV_KERNELS[kernel].oc_granule;
    let split = match split {
        "rows" => Split::Rows,
        "cols" if block > 0 => Split::Cols(block),
        // A kernel's tiles begin at multiples of its granule.
        "channels" if block > 0 && block % granule == 0 => Split::Channels(block),
        _ => return None,
    };
    let reason = words.next()?.to_string();
    (parts > 0).then_some(Known { kernel, pick: Pick { split, parts }, reason })
}

/// Keeps the choices of a plan, and how a batch is run. A cache that cannot be written is no
/// error: the next session measures again.
pub fn store(folder: &Path, key: u128, plan: &Plan, way: Way) {
    let _ = write(folder, &path(folder, key, "kernels"), &text(key, plan, way));
}

fn text(key: u128, plan: &Plan, way: Way) -> String {
    let Way { images, apart } = way;
    let apart = if apart { " apart" } else { "" };
    let mut text = format!("{HEAD}\n{key:032x}\nimages {images}{apart}\n");
    for step in (0..plan.steps()).filter(|&i| plan.step_kind[i] == StepKind::Conv) {
        let conv = &plan.convs[plan.step_row[step] as usize];
        let (split, block) = match conv.split {
            // How a layer runs in bands is not a choice.
            Split::Rows | Split::Banded => ("rows", 1),
            Split::Cols(block) => ("cols", block),
            Split::Channels(block) => ("channels", block),
        };
        let (name, parts) = (CONV_KERNELS[conv.kernel].name, plan.step_parts[step]);
        // The density is counted again.
        let reason = plan.step_info[step].reason.split_once("; ").map_or("", |(_, rest)| rest);
        let _ = writeln!(text, "{name} {split} {block} {parts} {}", reason.replace('\n', " "));
    }
    let _ = writeln!(text, "end {}", plan.convs.len());
    text
}

/// Writes a file of its own first: readers see the old one, or the new one whole.
fn write(folder: &Path, path: &Path, text: &str) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    fs::create_dir_all(folder)?;
    let new = folder.join(format!("{}-{}.new", process::id(), COUNT.fetch_add(1, Relaxed)));
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn path(folder: &Path, key: u128, what: &str) -> PathBuf {
    folder.join(format!("{key:032x}.{what}"))
}

/// A quick hash of many bytes, in four lanes that do not wait for each other. Not for adversaries.
struct Hash([u64; 4]);

impl Default for Hash {
    fn default() -> Hash {
        Hash([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89])
    }
}

/// Multiplies and folds: every bit of both sides reaches every bit of the result.
fn mix(a: u64, b: u64) -> u64 {
    let wide = (a ^ 0x9e37_79b9_7f4a_7c15) as u128 * (b | 1) as u128;
    (wide >> 64) as u64 ^ wide as u64
}

impl Hash {
    fn bytes(&mut self, bytes: &[u8]) {
        let mut blocks = bytes.chunks_exact(32);
        for block in &mut blocks {
            for (lane, word) in self.0.iter_mut().zip(block.chunks_exact(8)) {
                *lane = mix(*lane ^ u64::from_le_bytes(word.try_into().expect("eight bytes")), *lane);
            }
        }
        let mut last = [0; 32];
        last[..blocks.remainder().len()].copy_from_slice(blocks.remainder());
        for (lane, word) in self.0.iter_mut().zip(last.chunks_exact(8)) {
            *lane = mix(*lane ^ u64::from_le_bytes(word.try_into().expect("eight bytes")), *lane);
        }
        self.0[0] = mix(self.0[0] ^ bytes.len() as u64, self.0[1]);
    }

    fn finish(&self) -> u128 {
        let [a, b, c, d] = self.0;
        (mix(mix(a, b), c) as u128) << 64 | mix(mix(c, d), mix(b, a)) as u128
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u128 = 77;

    fn file(lines: &[&str]) -> String {
        format!("{HEAD}\n{KEY:032x}\nimages 4 apart\n{}\nend {}\n", lines.join("\n"), lines.len())
    }

    #[test]
    fn a_file_reads_back_and_nothing_else_does() {
        let lines =
            ["conv_i8_1x1_portable rows 1 2 measured a", "conv_f32_1x1_portable cols 16 1 measured b"];
        let good = file(&lines);
        let read = parse(&good, KEY, 2).unwrap();
        assert_eq!(read.way, Way { images: 4, apart: true });
        let shared = parse(&good.replace(" apart", ""), KEY, 2).unwrap();
        assert_eq!(shared.way, Way { images: 4, apart: false });
        assert!(parse(&good.replace(" apart", " together"), KEY, 2).is_none());
        assert_eq!(read.layers[1].pick, Pick { split: Split::Cols(16), parts: 1 });
        assert_eq!(read.layers[0].reason, "measured a");
        assert!(parse(&good, KEY + 1, 2).is_none());
        assert!(parse(&good, KEY, 1).is_none() && parse(&good, KEY, 3).is_none());
        // Nothing that is cut off reads, except for the last line's end.
        for end in 0..good.len() - 1 {
            assert!(parse(&good[..end], KEY, 2).is_none(), "{end}");
        }
        for bad in [
            "no_such_kernel rows 1 2 x",
            "conv_i8_1x1_portable diagonal 1 2 x",
            "conv_i8_1x1_portable cols 0 2 x",
            "conv_i8_1x1_portable rows 1 0 x",
            "conv_i8_1x1_portable rows 1 -1 x",
            "conv_i8_1x1_portable rows 1",
            "dwconv_i8_1x16_portable channels 8 2 x",
            "",
        ] {
            assert!(parse(&file(&[bad]), KEY, 1).is_none(), "{bad}");
        }
    }

    #[test]
    fn orders_read_back_and_nothing_else_does() {
        let orders = [None, Some(vec![2, 0, 1]), None, Some(vec![1, 0])];
        let channels = [None, Some(3), Some(7), Some(2)];
        let good = orders_text(KEY, &orders);
        assert_eq!(parse_orders(&good, KEY, &channels).unwrap(), orders);
        assert!(parse_orders(&good, KEY + 1, &channels).is_none());
        for end in 0..good.len() - 1 {
            assert!(parse_orders(&good[..end], KEY, &channels).is_none(), "{end}");
        }
        // A class that must keep its order, or has another number of channels, or is not there.
        for channels in [[None, None, None, Some(2)], [None, Some(4), None, Some(2)]] {
            assert!(parse_orders(&good, KEY, &channels).is_none());
        }
        assert!(parse_orders(&good, KEY, &channels[..3]).is_none());
        for bad in ["1 2 0 0", "1 3 0 1", "1 2 0", "1 2 0 -1", "1 2 0 x", "1", "", "x 2 0 1"] {
            assert!(parse_orders(&good.replace("1 2 0 1", bad), KEY, &channels).is_none(), "{bad}");
        }
    }

    #[test]
    fn every_byte_and_its_place_change_the_hash() {
        let hash = |bytes: &[u8]| {
            let mut hash = Hash::default();
            hash.bytes(bytes);
            hash.finish()
        };
        let mut seen = std::collections::HashSet::new();
        let mut bytes = [0u8; 100];
        for len in 0..=bytes.len() {
            assert!(seen.insert(hash(&bytes[..len])));
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                assert!(seen.insert(hash(&bytes)));
                bytes[at] ^= 1 << bit;
            }
        }
    }
}
