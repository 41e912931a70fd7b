//! Crash-safe checkpoints, and safetensors files.
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

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Largest safetensors file that is read or written.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// Largest safetensors header.
pub const HEADER_BYTES_MAX: u64 = 16 << 20;
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

/// A tensor as a file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub dims: Vec<usize>,
    /// `dims` multiplied values, row-major.
    pub data: Vec<f32>,
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
    for (i, (name, _)) in files.iter().enumerate() {
        if !is_file_stem(name) || files[..i].iter().any(|(n, _)| n == name) {
            return Err(Error::argument("checkpoint file", format!("bad or repeated name {name:?}")));
        }
    }
    disk::create_dir_all(dir)?;
    let path = dir.join(format!("checkpoint-{step}"));
    let tmp = suffixed(&path, "tmp");
    disk::remove_dir(&tmp)?;
    if let Err(e) = write_files(&tmp, step, files, state) {
        let _ = disk::remove_dir(&tmp); // a full disk needs the room; the first error is the one to report
        return Err(e);
    }
    if path.exists() {
        // Between the two renames `tmp` and `old` are both complete, and found by `load_latest`.
        let old = suffixed(&path, "old");
        disk::remove_dir(&old)?;
        disk::rename(&path, &old)?;
    }
    disk::rename(&tmp, &path)?;
    disk::sync_dir(dir)?;
    prune(dir, step)?;
    Ok(path)
}

/// Everything of a checkpoint, MANIFEST last, and waits until it is on the disk.
fn write_files(
    tmp: &Path,
    step: u64,
    files: &[(&str, &[NamedTensor])],
    state: &serde_json::Value,
) -> Result<()> {
    disk::create_dir_all(tmp)?;
    let mut manifest = format!("{MANIFEST_MAGIC}\nstep {step}\n");
    for (name, tensors) in files {
        let name = format!("{name}.safetensors");
        let written = disk::write(&tmp.join(&name), |w| encode_safetensors(w, tensors, &BTreeMap::new()))?;
        manifest += &written.manifest_line(&name);
    }
    let json = serde_json::to_vec_pretty(state).map_err(|e| Error::argument("state", e.to_string()))?;
    manifest += &disk::write(&tmp.join(STATE), |w| w.write_all(&json))?.manifest_line(STATE);
    manifest += &format!("end {}\n", sha256_hex(manifest.as_bytes()));
    disk::write(&tmp.join(MANIFEST), |w| w.write_all(manifest.as_bytes()))?;
    disk::sync_dir(tmp)
}

/// Reads the newest checkpoint that is complete and undamaged; `None` where there is none at all.
/// Damaged ones that are newer are named in [`Checkpoint::warnings`]; if nothing else is left it is
/// an error, so that a long run is not silently started from its beginning.
pub fn load_latest(dir: &Path) -> Result<Option<Checkpoint>> {
    let mut warnings = Vec::new();
    for found in list(dir)? {
        match load(&found.path, found.step) {
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
    list(dir)?.iter().try_for_each(|found| disk::remove_dir(&found.path))
}

/// Deletes what crashes left behind, and checkpoints older than the newest few up to `newest`.
fn prune(dir: &Path, newest: u64) -> Result<()> {
    let found = list(dir)?;
    for leftover in found.iter().filter(|f| f.rank != Rank::Complete) {
        disk::remove_dir(&leftover.path)?;
    }
    let complete = found.iter().filter(|f| f.rank == Rank::Complete && f.step <= newest);
    for older in complete.skip(CHECKPOINTS_KEPT) {
        let old = suffixed(&older.path, "old");
        disk::rename(&older.path, &old)?;
        disk::remove_dir(&old)?;
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
fn list(dir: &Path) -> Result<Vec<Found>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(dir))?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if let Some((step, rank)) = name.and_then(parse_dir_name).filter(|_| path.is_dir()) {
            found.push(Found { step, rank, path });
        }
    }
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

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{suffix}-{}", std::process::id()));
    PathBuf::from(name)
}

/// Reads and verifies one folder; each byte is hashed as it was read and before it is parsed.
fn load(path: &Path, step: u64) -> Result<Checkpoint> {
    let manifest_path = path.join(MANIFEST);
    let manifest = read_limited(&manifest_path, MANIFEST_BYTES_MAX)?;
    let entries = parse_manifest(&manifest, step).map_err(|why| Error::damaged(&manifest_path, why))?;
    let (mut files, mut state) = (Vec::new(), None);
    for (name, size, hash) in entries {
        let file = path.join(&name);
        let bytes = read_limited(&file, FILE_BYTES_MAX)?;
        if bytes.len() as u64 != size || sha256_hex(&bytes) != hash {
            return Err(Error::damaged(&file, "size or SHA-256 differs from the MANIFEST"));
        }
        match name.strip_suffix(".safetensors") {
            Some(stem) => files.push((stem.to_owned(), decode_safetensors(&bytes, &file)?.0)),
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

fn read_limited(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let size = fs::metadata(path).map_err(Error::io(path))?.len();
    if size > bytes_max {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            why: format!("{size} bytes, at most {bytes_max}"),
        });
    }
    fs::read(path).map_err(Error::io(path))
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a safetensors file: under another name first, so that `path` is always old or new, never
/// half. Tensors stand in the given order and metadata sorted, so equal input gives equal bytes.
pub fn write_safetensors(
    path: &Path,
    tensors: &[NamedTensor],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_atomically(path, |w| encode_safetensors(w, tensors, metadata))
}

/// The tensors of a safetensors file in the order they are stored; all must be f32.
pub fn read_safetensors(path: &Path) -> Result<Vec<NamedTensor>> {
    read_safetensors_metadata(path).map(|(tensors, _)| tensors)
}

/// As [`read_safetensors`], with the file's `__metadata__`.
pub fn read_safetensors_metadata(path: &Path) -> Result<(Vec<NamedTensor>, BTreeMap<String, String>)> {
    decode_safetensors(&read_limited(path, FILE_BYTES_MAX)?, path)
}

/// Replaces a file in one step; after an error or a crash the old one is still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |w| w.write_all(bytes))
}

fn write_atomically(path: &Path, encode: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let tmp = suffixed(path, "tmp");
    let written = disk::write(&tmp, encode).and_then(|_| disk::rename(&tmp, path));
    if written.is_err() {
        let _ = fs::remove_file(&tmp); // the first error is the one to report
    }
    written?;
    match path.parent() {
        Some(parent) if parent != Path::new("") => disk::sync_dir(parent),
        _ => disk::sync_dir(Path::new(".")),
    }
}

/// Layout: header length (u64 LE), JSON header padded with spaces to 8 bytes, then the values back to back.
fn encode_safetensors(
    w: &mut dyn Write,
    tensors: &[NamedTensor],
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let mut parts = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        parts.push(format!("\"__metadata__\":{}", serde_json::to_string(metadata)?));
    }
    let mut names = std::collections::HashSet::from(["__metadata__"]);
    let mut offset = 0usize;
    for NamedTensor { name, dims, data } in tensors {
        if !names.insert(name) {
            return Err(invalid(format!("two tensors are named '{name}'")));
        }
        if dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) != Some(data.len()) {
            return Err(invalid(format!("tensor '{name}' {dims:?} has {} values", data.len())));
        }
        let end = offset + data.len() * 4;
        let (name, dims) = (serde_json::to_string(name)?, serde_json::to_string(dims)?);
        parts
            .push(format!("{name}:{{\"dtype\":\"F32\",\"shape\":{dims},\"data_offsets\":[{offset},{end}]}}"));
        offset = end;
    }
    let mut header = format!("{{{}}}", parts.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    if header.len() as u64 > HEADER_BYTES_MAX || offset as u64 > FILE_BYTES_MAX - HEADER_BYTES_MAX - 8 {
        return Err(invalid(format!(
            "{} tensors of {offset} bytes are too many for one file",
            tensors.len()
        )));
    }
    w.write_all(&(header.len() as u64).to_le_bytes())?;
    w.write_all(header.as_bytes())?;
    for values in tensors.iter().flat_map(|t| t.data.chunks(16 << 10)) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        w.write_all(&bytes)?;
    }
    Ok(())
}

fn decode_safetensors(bytes: &[u8], path: &Path) -> Result<(Vec<NamedTensor>, BTreeMap<String, String>)> {
    let cut = |need: u64| {
        let why = format!("it is cut short: the header needs {need} bytes, the file has {}", bytes.len());
        Error::damaged(path, why)
    };
    let header = bytes.first_chunk::<8>().map(|n| u64::from_le_bytes(*n)).ok_or_else(|| cut(8))?;
    if header > HEADER_BYTES_MAX {
        let why =
            format!("a header of {header} bytes, at most {HEADER_BYTES_MAX}; is it a safetensors file?");
        return Err(Error::TooLarge { path: path.to_owned(), why });
    }
    if header + 8 > bytes.len() as u64 {
        return Err(cut(header + 8));
    }
    // Offsets, holes, overlaps and sizes are checked by the safetensors crate.
    let explain = |e: safetensors::SafeTensorError| match e {
        safetensors::SafeTensorError::MetadataIncompleteBuffer => {
            let why = format!("its {} bytes are not those the header describes; copy it again", bytes.len());
            Error::damaged(path, why)
        }
        e => Error::damaged(path, e.to_string()),
    };
    let (_, metadata) = safetensors::SafeTensors::read_metadata(bytes).map_err(explain)?;
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(explain)?;
    let mut tensors = Vec::with_capacity(file.len());
    for name in metadata.offset_keys() {
        let view = file.tensor(&name).map_err(explain)?;
        if view.dtype() != safetensors::Dtype::F32 {
            let why = format!("tensor '{name}' is {:?}; only F32 is read, convert it first", view.dtype());
            return Err(Error::Unsupported { path: path.to_owned(), why });
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        tensors.push(NamedTensor { data: values.collect(), dims: view.shape().to_vec(), name });
    }
    let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok((tensors, metadata))
}

/// Every change to the disk goes through here, so that tests can stop the process at each of them.
mod disk {
    use super::*;

    /// What was written: enough for a line of the MANIFEST.
    pub struct Written {
        size: u64,
        hash: String,
    }

    impl Written {
        pub fn manifest_line(&self, name: &str) -> String {
            format!("{} {} {name}\n", self.hash, self.size)
        }
    }

    struct Hashing {
        file: File,
        size: u64,
        sha: Sha256,
    }

    impl Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            point()?;
            let n = self.file.write(bytes)?;
            self.sha.update(&bytes[..n]);
            self.size += n as u64;
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.file.flush()
        }
    }

    /// Writes a file and waits until its content is on the disk.
    pub fn write(path: &Path, encode: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Written> {
        let write = || {
            point()?;
            let file = Hashing { file: File::create(path)?, size: 0, sha: Sha256::new() };
            let mut writer = BufWriter::with_capacity(64 << 10, file);
            encode(&mut writer)?;
            let done = writer.into_inner().map_err(|e| e.into_error())?;
            point()?;
            done.file.sync_all()?;
            Ok(Written { size: done.size, hash: hex(&done.sha.finalize()) })
        };
        write().map_err(Error::io(path))
    }

    pub fn create_dir_all(path: &Path) -> Result<()> {
        point().and_then(|()| fs::create_dir_all(path)).map_err(Error::io(path))
    }

    pub fn rename(from: &Path, to: &Path) -> Result<()> {
        point().and_then(|()| fs::rename(from, to)).map_err(Error::io(from))
    }

    /// Waits until the names in a folder are on the disk.
    pub fn sync_dir(path: &Path) -> Result<()> {
        point().and_then(|()| File::open(path)?.sync_all()).map_err(Error::io(path))
    }

    /// Deletes a folder of plain files, if it is there.
    pub fn remove_dir(path: &Path) -> Result<()> {
        let remove = || {
            for entry in fs::read_dir(path)? {
                point()?;
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            point()?;
            fs::remove_dir(path)
        };
        match remove() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(Error::io(path)),
        }
    }

    #[cfg(not(test))]
    fn point() -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    thread_local! {
        /// Changes that still succeed before the simulated crash; after it none does.
        pub static LEFT: std::cell::Cell<u64> = const { std::cell::Cell::new(u64::MAX) };
    }

    #[cfg(test)]
    fn point() -> io::Result<()> {
        let left = LEFT.get();
        LEFT.set(left.saturating_sub(1));
        if left == 0 { Err(io::Error::other("simulated crash")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tensor(name: &str, dims: &[usize], first: f32) -> NamedTensor {
        let n: usize = dims.iter().product();
        NamedTensor {
            name: name.into(),
            dims: dims.to_vec(),
            data: (0..n).map(|i| first + i as f32 * 0.5).collect(),
        }
    }

    /// Tensors and state that follow from the step, so that a mixture of two steps is seen.
    fn save_step(dir: &Path, step: u64) -> Result<PathBuf> {
        let first = step as f32;
        let model = [tensor("conv1.weight", &[40, 3, 3, 50], first), tensor("fc.bias", &[7], -first)];
        let optimizer = [tensor("conv1.weight", &[40, 3, 3, 50], 2.0 * first)];
        save(
            dir,
            step,
            &[("model", &model), ("optimizer", &optimizer), ("masks", &[])],
            &json!({ "step": step }),
        )
    }

    fn check_step(c: &Checkpoint) {
        let first = c.step as f32;
        assert_eq!(c.state, json!({ "step": c.step }));
        assert_eq!(
            c.files.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
            ["model", "optimizer", "masks"]
        );
        let model = c.file("model").unwrap();
        assert_eq!(model[0], tensor("conv1.weight", &[40, 3, 3, 50], first));
        assert_eq!(model[1], tensor("fc.bias", &[7], -first));
        assert_eq!(c.file("optimizer").unwrap()[0].data[0], 2.0 * first);
        assert!(c.file("masks").unwrap().is_empty() && c.file("other").is_err());
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// In memory where there is such a place: hundreds of saves, each waiting for the disk, take long.
    fn memory_dir() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    fn latest(dir: &Path) -> Checkpoint {
        let c = load_latest(dir).unwrap().expect("a checkpoint");
        check_step(&c);
        c
    }

    #[test]
    fn the_newest_is_loaded_and_older_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert!(load_latest(&run).unwrap().is_none());
        for step in [90, 100, 1100, 100, 1200] {
            save_step(&run, step).unwrap();
        }
        assert_eq!(latest(&run).step, 1200);
        assert_eq!(names(&run), ["checkpoint-1100", "checkpoint-1200"]);
        clear(&run).unwrap();
        assert!(load_latest(&run).unwrap().is_none() && names(&run).is_empty());
    }

    /// The process dies before each change to the disk in turn, also while it replaces and prunes.
    #[test]
    fn a_crash_at_any_point_loses_nothing() {
        for (before, step) in [(&[][..], 10), (&[10], 20), (&[10, 20], 30), (&[10, 20], 20)] {
            let mut points = 0;
            for crash_at in 0.. {
                let dir = memory_dir();
                for &step in before {
                    save_step(dir.path(), step).unwrap();
                }
                disk::LEFT.set(crash_at);
                let saved = save_step(dir.path(), step);
                disk::LEFT.set(u64::MAX);
                match load_latest(dir.path()).unwrap() {
                    Some(c) => {
                        check_step(&c);
                        assert!(c.warnings.is_empty(), "{:?}", c.warnings);
                        let previous = before.last().copied().unwrap_or(step);
                        assert!(c.step == step || (saved.is_err() && c.step == previous), "got {}", c.step);
                    }
                    None => assert!(before.is_empty() && saved.is_err(), "lost at change {crash_at}"),
                }
                // The next save succeeds and leaves no rubbish.
                save_step(dir.path(), 40).unwrap();
                assert_eq!(latest(dir.path()).step, 40);
                assert!(names(dir.path()).iter().all(|n| !n.contains('.')), "{:?}", names(dir.path()));
                if saved.is_ok() {
                    points = crash_at;
                    break;
                }
            }
            assert!(points > 15, "only {points} points were tried");
        }
    }

    /// A real process is killed while it saves without pause.
    #[test]
    fn a_killed_writer_always_leaves_a_checkpoint() {
        const DIR: &str = "LACUNA_TEST_KILLED_WRITER";
        if let Some(dir) = std::env::var_os(DIR) {
            let last = load_latest(Path::new(&dir)).unwrap().map_or(0, |c| c.step);
            (last + 1..last + 2000).for_each(|step| drop(save_step(Path::new(&dir), step).unwrap()));
            return; // bounded, should nobody kill it
        }
        let dir = tempfile::tempdir().unwrap();
        let this_test = std::thread::current().name().unwrap().to_owned();
        let mut newest = 0;
        for round in 0..25u64 {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", &this_test, "--nocapture"])
                .env(DIR, dir.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            // Wait until it has saved, then for a moment that differs from round to round.
            let start = std::time::Instant::now();
            let saved = |f: Found| f.rank == Rank::Complete && f.step > newest;
            while !list(dir.path()).unwrap().into_iter().any(saved) && start.elapsed().as_secs() < 100 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            std::thread::sleep(std::time::Duration::from_micros(round * 7_919 % 30_000));
            child.kill().unwrap();
            child.wait().unwrap();
            let c = latest(dir.path());
            assert!(c.warnings.is_empty(), "{:?}", c.warnings);
            assert!(c.step > newest, "went back from {newest} to {}", c.step);
            newest = c.step;
        }
    }

    #[test]
    fn damage_is_found_and_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        save_step(dir.path(), 1).unwrap();
        let path = save_step(dir.path(), 2).unwrap();
        for name in names(&path) {
            let file = path.join(name);
            let good = fs::read(&file).unwrap();
            let mut flipped = good.clone();
            flipped[good.len() / 2] ^= 1;
            for bad in [flipped, good[..good.len() - 1].to_vec(), Vec::new()] {
                fs::write(&file, bad).unwrap();
                let c = latest(dir.path());
                assert_eq!((c.step, c.warnings.len()), (1, 1));
                assert!(c.warnings[0].contains("checkpoint-2"), "{}", c.warnings[0]);
            }
            fs::remove_file(&file).unwrap();
            assert_eq!(latest(dir.path()).step, 1);
            fs::write(&file, good).unwrap();
        }
        assert_eq!(latest(dir.path()).step, 2);
        for step in [1, 2] {
            fs::write(dir.path().join(format!("checkpoint-{step}/state.json")), "{}").unwrap();
        }
        let e = load_latest(dir.path()).unwrap_err();
        assert!(matches!(&e, Error::NoValidCheckpoint { reasons, .. } if reasons.len() == 2), "{e}");
    }

    #[test]
    fn a_manifest_cannot_name_files_elsewhere() {
        let forge = |line: &str| {
            let body = format!("{MANIFEST_MAGIC}\nstep 1\n{line}\n");
            parse_manifest(format!("{body}end {}\n", sha256_hex(body.as_bytes())).as_bytes(), 1)
        };
        assert!(forge("00 5 model.safetensors").is_ok());
        for bad in
            ["00 5 ../model.safetensors", "00 5 /etc/passwd", "00 x state.json", "00", "00 5 a/b.safetensors"]
        {
            assert!(forge(bad).is_err(), "{bad}");
        }
        assert!(parse_manifest(b"end ", 1).is_err() && parse_manifest(&[0xff], 1).is_err());
    }

    #[test]
    fn safetensors_files_round_trip_and_stay_equal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let mut tensors = vec![
            tensor("b \"quoted\"", &[2, 3], 1.0),
            tensor("a", &[], 7.0),
            tensor("long", &[300, 300], 0.0),
        ];
        tensors[0].data[1] = f32::NEG_INFINITY;
        let meta = BTreeMap::from([("seed".to_owned(), "42".to_owned()), ("command".into(), "a\nb".into())]);
        write_safetensors(&path, &tensors, &meta).unwrap();
        assert_eq!(read_safetensors_metadata(&path).unwrap(), (tensors.clone(), meta.clone()));
        assert_eq!(read_safetensors(&path).unwrap(), tensors);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
        write_safetensors(&path, &tensors, &meta).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);

        // A failed write keeps the file there was, and leaves nothing else.
        let twice = [tensor("a", &[1], 0.0), tensor("a", &[1], 0.0)];
        let wrong = [NamedTensor { name: "a".into(), dims: vec![2, usize::MAX], data: vec![0.0; 4] }];
        let reserved = [tensor("__metadata__", &[1], 0.0)];
        for bad in [&twice[..], &wrong, &reserved] {
            assert!(write_safetensors(&path, bad, &meta).is_err());
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(names(dir.path()), ["w.safetensors"]);
        assert!(save(dir.path(), 1, &[("../x", &[])], &json!(0)).is_err());
        assert!(save(dir.path(), 1, &[("x", &[]), ("x", &[])], &json!(0)).is_err());
    }

    #[test]
    fn hostile_safetensors_are_typed_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        write_safetensors(&path, &[tensor("a", &[4, 4], 1.0), tensor("b", &[2], 0.0)], &BTreeMap::new())
            .unwrap();
        let good = fs::read(&path).unwrap();
        for len in 0..good.len() {
            let e = decode_safetensors(&good[..len], &path).expect_err("a cut file was accepted");
            assert!(matches!(e, Error::Damaged { .. }), "{len}: {e}");
        }
        let file = |header: &str, data: usize| {
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
        };
        let one = |fields: &str, data| file(&format!("{{\"a\":{{{fields}}}}}"), data);
        let damaged = [
            one("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]", 4),
            one("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]", 8),
            one("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]", 4),
            one("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]", 5),
            one("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,4]", 4),
            one("\"dtype\":\"F32\",\"shape\":[1099511627776],\"data_offsets\":[0,4398046511104]", 4),
            one("\"dtype\":\"X9\",\"shape\":[1],\"data_offsets\":[0,4]", 4),
            file("[1,2", 0),
            file(&"[".repeat(100_000), 0),
        ];
        for bytes in damaged {
            let e = decode_safetensors(&bytes, &path).unwrap_err();
            assert!(matches!(e, Error::Damaged { .. }), "{e}");
        }
        let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        assert!(matches!(decode_safetensors(&huge, &path), Err(Error::TooLarge { .. })));
        let f16 = one("\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]", 4);
        let e = decode_safetensors(&f16, &path).unwrap_err();
        assert!(matches!(&e, Error::Unsupported { why, .. } if why.contains("'a' is F16")), "{e}");
        assert!(matches!(read_safetensors(&dir.path().join("none")), Err(Error::Io { .. })));
    }
}
