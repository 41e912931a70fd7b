//! Crash-safe checkpoints.
//!
//! ```text
//! RUN/checkpoint-1200/            complete: its MANIFEST lists every file with size and SHA-256
//!       model.safetensors, optimizer.safetensors, ...   flat f32 tensors
//!       state.json                everything else: position, random state, schedule, log offsets
//!       MANIFEST                  written last; its own last line is the hash of the lines above
//! RUN/checkpoint-1600.tmp-4711/   being written; renamed when all of it is on disk
//! RUN/checkpoint-800.old-4711/    being deleted
//! ```
//! The process may die at any point: [`load_latest`] takes the newest folder whose every byte agrees
//! with its MANIFEST, whatever its suffix, and an older one is deleted only when the newer is on disk.
//! One process at a time writes into a run folder.

use crate::disk::{self, Disk, Real, read_limited, sha256_hex, suffixed};
use crate::tensor_file::{FILE_BYTES_MAX, decode, encode};
pub use crate::tensor_file::{NamedTensor, read_safetensors, read_safetensors_metadata, write_safetensors};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Complete checkpoints that are kept: the newest, and one before it in case a disk damages that.
pub const CHECKPOINTS_KEPT: usize = 2;

const MANIFEST: &str = "MANIFEST";
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
const MANIFEST_MAGIC: &str = "lacuna-checkpoint 1";
const STATE: &str = "state.json";

/// What can be wrong with the files of a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The content contradicts itself, its checksum or its format.
    #[error("{path}: the file is damaged: {why}", path = .path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{path}: not supported: {why}", path = .path.display())]
    Unsupported { path: PathBuf, why: String },
    #[error("{path}: too large: {why}", path = .path.display())]
    TooLarge { path: PathBuf, why: String },
    #[error("{dir}: no checkpoint can be used; restore one or start a new run\n  {list}",
            dir = .dir.display(), list = .reasons.join("\n  "))]
    NoValidCheckpoint { dir: PathBuf, reasons: Vec<String> },
    /// A caller's argument does not make sense.
    #[error("{what}: {why}")]
    Argument { what: &'static str, why: String },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Error::Io { path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Error::Damaged { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn argument(what: &'static str, why: impl Into<String>) -> Self {
        Error::Argument { what, why: why.into() }
    }
}

/// A checkpoint in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub step: u64,
    /// Where it was read from.
    pub path: PathBuf,
    /// The files by their names without extension, in the order of saving.
    pub files: Vec<(String, Vec<NamedTensor>)>,
    pub state: serde_json::Value,
    /// Newer checkpoints that were passed over because they are damaged; show them to the user.
    pub warnings: Vec<String>,
}

impl Checkpoint {
    /// The tensors of file `name` ("model", "optimizer", ...).
    pub fn file(&self, name: &str) -> Result<&[NamedTensor]> {
        let found = self.files.iter().find(|(n, _)| n == name);
        found.map(|(_, tensors)| tensors.as_slice()).ok_or_else(|| {
            Error::damaged(
                &self.path,
                format!("this checkpoint has no {name}.safetensors; was it made by another version?"),
            )
        })
    }
}

/// Writes `dir/checkpoint-<step>/` with one safetensors file for each of `files` (names of lower-case
/// letters, digits and `_`) and `state`, waits until it is on the disk, then deletes older
/// checkpoints but for the newest [`CHECKPOINTS_KEPT`]. An existing one of the same step is replaced.
/// On an error every earlier checkpoint is still there.
pub fn save(
    dir: &Path,
    step: u64,
    files: &[(&str, &[NamedTensor])],
    state: &serde_json::Value,
) -> Result<PathBuf> {
    save_on(&Real, dir, step, files, state)
}

fn save_on(
    disk: &dyn Disk,
    dir: &Path,
    step: u64,
    files: &[(&str, &[NamedTensor])],
    state: &serde_json::Value,
) -> Result<PathBuf> {
    for (i, (name, _)) in files.iter().enumerate() {
        if !is_file_stem(name) || files[..i].iter().any(|(n, _)| n == name) {
            return Err(Error::argument("checkpoint file", format!("bad or repeated name {name:?}")));
        }
    }
    disk::create_dir_all(disk, dir)?;
    let path = dir.join(format!("checkpoint-{step}"));
    let tmp = free_name(disk, &path, "tmp");
    if let Err(e) = write_files(disk, &tmp, step, files, state) {
        let _ = disk::remove_tree(disk, &tmp); // a full disk needs the room; the first error is the one to report
        return Err(e);
    }
    if disk.exists(&path) {
        // Between the two renames `tmp` and `old` are both complete, and found by `load_latest`.
        let old = free_name(disk, &path, "old");
        disk.rename(&path, &old).map_err(Error::io(&path))?;
    }
    disk.rename(&tmp, &path).map_err(Error::io(&tmp))?;
    disk.sync_dir(dir).map_err(Error::io(dir))?;
    prune(disk, dir, step)?;
    Ok(path)
}

/// A suffixed name that no folder has. What an earlier process left under such a name may be the only complete
/// checkpoint (in a container, process ids come again), so it stays until there is a newer one.
fn free_name(disk: &dyn Disk, path: &Path, suffix: &str) -> PathBuf {
    let mut name = suffixed(path, suffix);
    while disk.exists(&name) {
        name.as_mut_os_string().push("-again");
    }
    name
}

/// Everything of a checkpoint, MANIFEST last, and waits until it is on the disk.
fn write_files(
    disk: &dyn Disk,
    tmp: &Path,
    step: u64,
    files: &[(&str, &[NamedTensor])],
    state: &serde_json::Value,
) -> Result<()> {
    disk.create_dir(tmp).map_err(Error::io(tmp))?;
    let mut manifest = format!("{MANIFEST_MAGIC}\nstep {step}\n");
    for (name, tensors) in files {
        let name = format!("{name}.safetensors");
        let written = disk::write(disk, &tmp.join(&name), |w| encode(w, tensors, &BTreeMap::new()))?;
        manifest += &manifest_line(&written, &name);
    }
    let json = serde_json::to_vec_pretty(state).map_err(|e| Error::argument("state", e.to_string()))?;
    manifest += &manifest_line(&disk::write(disk, &tmp.join(STATE), |w| w.write_all(&json))?, STATE);
    manifest += &format!("end {}\n", sha256_hex(manifest.as_bytes()));
    disk::write(disk, &tmp.join(MANIFEST), |w| w.write_all(manifest.as_bytes()))?;
    disk.sync_dir(tmp).map_err(Error::io(tmp))
}

fn manifest_line(written: &disk::Written, name: &str) -> String {
    format!("{} {} {name}\n", written.hash, written.size)
}

/// Reads the newest checkpoint that is complete and undamaged; `None` where there is none at all.
/// Damaged ones that are newer are named in [`Checkpoint::warnings`]; if nothing else is left it is
/// an error, so that a long run is not silently started from its beginning.
pub fn load_latest(dir: &Path) -> Result<Option<Checkpoint>> {
    load_latest_on(&Real, dir)
}

fn load_latest_on(disk: &dyn Disk, dir: &Path) -> Result<Option<Checkpoint>> {
    let mut warnings = Vec::new();
    for found in list(disk, dir)? {
        match load(disk, &found.path, found.step) {
            Ok(checkpoint) => return Ok(Some(Checkpoint { warnings, ..checkpoint })),
            // A folder with a suffix is what a crash leaves behind: nothing is lost with it.
            Err(_) if found.rank != Rank::Complete => {}
            Err(e) => warnings.push(e.to_string()),
        }
    }
    if warnings.is_empty() {
        return Ok(None);
    }
    Err(Error::NoValidCheckpoint { dir: dir.to_owned(), reasons: warnings })
}

/// Deletes every checkpoint in `dir`: for a new run in the folder of an old one.
pub fn clear(dir: &Path) -> Result<()> {
    list(&Real, dir)?.iter().try_for_each(|found| disk::remove_tree(&Real, &found.path))
}

/// Deletes what crashes left behind, and checkpoints older than the newest few up to `newest`.
fn prune(disk: &dyn Disk, dir: &Path, newest: u64) -> Result<()> {
    let found = list(disk, dir)?;
    for leftover in found.iter().filter(|f| f.rank != Rank::Complete) {
        disk::remove_tree(disk, &leftover.path)?;
    }
    let complete = found.iter().filter(|f| f.rank == Rank::Complete && f.step <= newest);
    for older in complete.skip(CHECKPOINTS_KEPT) {
        let old = free_name(disk, &older.path, "old");
        disk.rename(&older.path, &old).map_err(Error::io(&older.path))?;
        disk::remove_tree(disk, &old)?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Complete,
    Tmp,
    Old,
}

struct Found {
    step: u64,
    rank: Rank,
    path: PathBuf,
}

/// The folders named like checkpoints, newest first.
fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<Found>> {
    let entries = match disk.entries(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(dir))?,
    };
    let folders = entries.into_iter().filter(|(_, is_dir)| *is_dir);
    let mut found: Vec<Found> = folders
        .filter_map(|(name, _)| {
            let (step, rank) = parse_dir_name(name.to_str()?)?;
            Some(Found { step, rank, path: dir.join(name) })
        })
        .collect();
    found.sort_by(|a, b| (b.step, a.rank, &a.path).cmp(&(a.step, b.rank, &b.path)));
    Ok(found)
}

fn parse_dir_name(name: &str) -> Option<(u64, Rank)> {
    let rest = name.strip_prefix("checkpoint-")?;
    let (step, rank) = match rest.split_once('.') {
        None => (rest, Rank::Complete),
        Some((step, suffix)) if suffix.starts_with("tmp-") => (step, Rank::Tmp),
        Some((step, suffix)) if suffix.starts_with("old-") => (step, Rank::Old),
        Some(_) => return None,
    };
    step.parse().ok().map(|step| (step, rank))
}

/// Reads and verifies one folder; each byte is hashed as it was read and before it is parsed.
fn load(disk: &dyn Disk, path: &Path, step: u64) -> Result<Checkpoint> {
    let manifest_path = path.join(MANIFEST);
    let manifest = read_limited(disk, &manifest_path, MANIFEST_BYTES_MAX)?;
    let entries = parse_manifest(&manifest, step).map_err(|why| Error::damaged(&manifest_path, why))?;
    let (mut files, mut state) = (Vec::new(), None);
    for (name, size, hash) in entries {
        let file = path.join(&name);
        let bytes = read_limited(disk, &file, FILE_BYTES_MAX)?;
        if bytes.len() as u64 != size || sha256_hex(&bytes) != hash {
            return Err(Error::damaged(&file, "size or SHA-256 differs from the MANIFEST"));
        }
        match name.strip_suffix(".safetensors") {
            Some(stem) => files.push((stem.to_owned(), decode(&bytes, &file)?.0)),
            None => {
                let json = serde_json::from_slice(&bytes);
                state = Some(json.map_err(|e| Error::damaged(&file, e.to_string()))?);
            }
        }
    }
    let state = state.ok_or_else(|| Error::damaged(&manifest_path, "state.json is not listed"))?;
    Ok(Checkpoint { step, path: path.to_owned(), files, state, warnings: Vec::new() })
}

/// (file name, size, hash) of each line. The names are such that none can leave the folder.
fn parse_manifest(bytes: &[u8], step: u64) -> Result<Vec<(String, u64, String)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let end = text.rfind("end ").ok_or("it has no end line")?;
    let (body, end) = text.split_at(end);
    if end != format!("end {}\n", sha256_hex(body.as_bytes())) {
        return Err("its own checksum differs".into());
    }
    let mut lines = body.lines();
    if lines.next() != Some(MANIFEST_MAGIC) || lines.next() != Some(&format!("step {step}")) {
        return Err(format!("it does not begin with '{MANIFEST_MAGIC}' and 'step {step}'"));
    }
    let entry = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (hash, size, name) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        let known = name == STATE || name.strip_suffix(".safetensors").is_some_and(is_file_stem);
        known.then(|| (name.to_owned(), size, hash.to_owned()))
    };
    lines.map(|line| entry(line).ok_or_else(|| format!("line '{line}' is not understood"))).collect()
}

fn is_file_stem(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Replaces a file in one step; after an error or a crash the old one is still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    disk::write_atomically(&Real, path, |w| w.write_all(bytes))
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
