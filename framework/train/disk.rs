//! The few operations on a file system by which a run survives a crash, behind one seam: [`Real`] carries them out, and
//! the tests have a simulated one that stops at each of them and forgets what was not synchronised.
//!
//! What a system promises (POSIX, and not more): the content of a file is on the disk after its `sync`; its name, and
//! every creation, renaming and deletion in a folder, after `sync_dir` of that folder. Until then each may be lost or
//! kept, in any order.

use crate::checkpoint::{Error, Result};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Bytes that are handed to the system at once.
const WRITE_BYTES: usize = 64 << 10;

/// A file system, as far as runs need one. All paths of one call lie in folders that exist.
pub(crate) trait Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// A new, empty file, or an old one emptied.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output + '_>>;
    /// Within one folder; replaces a file of the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// The folder must be empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Waits until the names in a folder are on the disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    fn exists(&self, path: &Path) -> bool;
    /// What is in a folder, and whether each is a folder.
    fn entries(&self, path: &Path) -> io::Result<Vec<(OsString, bool)>>;
    /// Bytes of a file.
    fn size(&self, path: &Path) -> io::Result<u64>;
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// A file being written.
pub(crate) trait Output: Write {
    /// Waits until its content is on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// The file system of this machine.
pub(crate) struct Real;

impl Disk for Real {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output + '_>> {
        Ok(Box::new(File::create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn entries(&self, path: &Path) -> io::Result<Vec<(OsString, bool)>> {
        let entry =
            |e: io::Result<fs::DirEntry>| e.and_then(|e| Ok((e.file_name(), e.file_type()?.is_dir())));
        fs::read_dir(path)?.map(entry).collect()
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }
}

impl Output for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// What was written: enough for a line of a MANIFEST.
pub(crate) struct Written {
    pub size: u64,
    /// SHA-256, in hexadecimal digits.
    pub hash: String,
}

/// Writes a file and waits until its content is on the disk; its name is so after a `sync_dir`.
pub(crate) fn write(
    disk: &dyn Disk,
    path: &Path,
    encode: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Written> {
    let write = || {
        let file = Hashing { file: disk.create(path)?, size: 0, sha: Sha256::new() };
        let mut writer = BufWriter::with_capacity(WRITE_BYTES, file);
        encode(&mut writer)?;
        let mut done = writer.into_inner().map_err(|e| e.into_error())?;
        done.file.sync()?;
        Ok(Written { size: done.size, hash: hex(&done.sha.finalize()) })
    };
    write().map_err(Error::io(path))
}

struct Hashing<'a> {
    file: Box<dyn Output + 'a>,
    size: u64,
    sha: Sha256,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.sha.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes a folder and those it lies in, as far as they are missing, and waits until their names are on the disk.
pub(crate) fn create_dir_all(disk: &dyn Disk, path: &Path) -> Result<()> {
    if disk.exists(path) || path == Path::new("") {
        return Ok(());
    }
    let parent = parent_of(path);
    create_dir_all(disk, parent)?;
    match disk.create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::io(path))?,
    }
    disk.sync_dir(parent).map_err(Error::io(parent))
}

/// Deletes a folder with all that is in it, if it is there.
pub(crate) fn remove_tree(disk: &dyn Disk, path: &Path) -> Result<()> {
    let entries = match disk.entries(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io(path))?,
    };
    for (name, is_dir) in entries {
        let path = path.join(name);
        if is_dir {
            remove_tree(disk, &path)?;
        } else {
            disk.remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    disk.remove_dir(path).map_err(Error::io(path))
}

/// Reads a file whose size is checked first.
pub(crate) fn read_limited(disk: &dyn Disk, path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let size = disk.size(path).map_err(Error::io(path))?;
    if size > bytes_max {
        let why = format!("{size} bytes, at most {bytes_max}");
        return Err(Error::TooLarge { path: path.to_owned(), why });
    }
    disk.read(path).map_err(Error::io(path))
}

/// Replaces a file in one step: after an error or a crash `path` is the old file or the new one, never half.
pub(crate) fn write_atomically(
    disk: &dyn Disk,
    path: &Path,
    encode: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let tmp = suffixed(path, "tmp");
    let written = write(disk, &tmp, encode).and_then(|_| disk.rename(&tmp, path).map_err(Error::io(path)));
    if written.is_err() {
        let _ = disk.remove_file(&tmp); // the first error is the one to report
    }
    written?;
    let parent = parent_of(path);
    disk.sync_dir(parent).map_err(Error::io(parent))
}

/// `path` with `.<suffix>-<process id>` at its end.
pub(crate) fn suffixed(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{suffix}-{}", std::process::id()));
    name.into()
}

/// The folder that a path lies in; `.` for a bare name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
pub(crate) mod simulated;
