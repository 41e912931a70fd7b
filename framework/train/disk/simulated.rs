//! A file system that crashes: at the n-th change it stops, and what it then holds is decided by [`Survives`].
//!
//! It keeps two images. `seen` is what a running process sees; `durable` is what is certainly on the disk. In between
//! lie the changes of names that no `sync_dir` has followed yet, and the bytes of files that no `sync` has.

use super::{Disk, Output};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Component, Path};

/// Disks write whole sectors: a torn write ends at the end of one.
const SECTOR_BYTES: usize = 512;
const ROOT: usize = 0;

/// What of the changes that were not synchronised is there after a crash.
#[derive(Debug, Clone, Copy)]
pub enum Survives {
    /// All of them: a killed process.
    Everything,
    /// None: a lost power supply and a lazy disk.
    Nothing,
    /// Each or not, in any order, and any sectors of a file: one of many ways.
    Some { seed: u64 },
}

pub struct Simulated(RefCell<World>);

#[derive(Clone)]
struct World {
    /// Files and folders, by number.
    nodes: Vec<Node>,
    seen: Names,
    durable: Names,
    /// Between the two, in the order they were made.
    pending: Vec<Change>,
    /// Changes that still succeed.
    left: u64,
    /// After the one that fails: whether the next ones succeed again, as after a full disk.
    recovers: bool,
    /// Changes so far.
    changes: u64,
}

/// (folder, name) to file or folder.
type Names = BTreeMap<(usize, OsString), usize>;

#[derive(Clone, Default)]
struct Node {
    is_dir: bool,
    seen: Vec<u8>,
    durable: Vec<u8>,
}

/// Of one folder's names: one goes, one comes.
#[derive(Clone)]
struct Change {
    dir: usize,
    gone: Option<(OsString, usize)>,
    come: Option<(OsString, usize)>,
}

impl Change {
    fn apply(&self, names: &mut Names) {
        if let Some((name, node)) = &self.gone {
            let key = (self.dir, name.clone());
            if names.get(&key) == Some(node) {
                names.remove(&key);
            }
        }
        if let Some((name, node)) = &self.come {
            names.insert((self.dir, name.clone()), *node);
        }
    }
}

impl Simulated {
    /// An empty disk on which every change succeeds.
    pub fn new() -> Simulated {
        let root = Node { is_dir: true, ..Node::default() };
        Simulated(RefCell::new(World {
            nodes: vec![root],
            seen: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
            left: u64::MAX,
            recovers: false,
            changes: 0,
        }))
    }

    /// A second disk with the same state.
    pub fn copy(&self) -> Simulated {
        Simulated(RefCell::new(self.0.borrow().clone()))
    }

    /// Lets `n` more changes succeed; the next fails, and all after it unless it `recovers`.
    pub fn fail_after(&self, n: u64, recovers: bool) {
        let mut world = self.0.borrow_mut();
        (world.left, world.recovers) = (n, recovers);
    }

    /// Changes that were tried so far.
    pub fn changes(&self) -> u64 {
        self.0.borrow().changes
    }

    /// The disk as the next process finds it.
    pub fn after_crash(&self, survives: Survives) -> Simulated {
        let mut world = self.0.borrow().clone();
        match survives {
            Survives::Everything => world.durable = world.seen.clone(),
            Survives::Nothing => world.nodes.iter_mut().for_each(|node| node.seen = node.durable.clone()),
            Survives::Some { seed } => {
                let mut random = Random(seed);
                let mut kept: Vec<Change> =
                    world.pending.iter().filter(|_| random.below(2) == 0).cloned().collect();
                for i in (1..kept.len()).rev() {
                    kept.swap(i, random.below(i + 1));
                }
                kept.iter().for_each(|change| change.apply(&mut world.durable));
                world.nodes.iter_mut().for_each(|node| tear(node, &mut random));
            }
        }
        for node in &mut world.nodes {
            node.durable = node.seen.clone();
        }
        world.seen = world.durable.clone();
        world.pending.clear();
        (world.left, world.recovers) = (u64::MAX, false);
        Simulated(RefCell::new(world))
    }
}

/// Leaves of what was not synchronised some sectors, and zeros or nothing where the others were.
fn tear(node: &mut Node, random: &mut Random) {
    if node.seen == node.durable {
        return;
    }
    match random.below(4) {
        0 => {}
        1 => node.seen = node.durable.clone(),
        2 => {
            let sectors = random.below(node.seen.len() / SECTOR_BYTES + 1);
            node.seen.truncate(sectors * SECTOR_BYTES);
        }
        _ => {
            for sector in node.seen.chunks_mut(SECTOR_BYTES).filter(|_| random.below(2) == 0) {
                sector.fill(0);
            }
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

impl World {
    /// Counts a change; the one that fails, and those after it, are errors.
    fn change(&mut self) -> io::Result<()> {
        self.changes += 1;
        if self.left == 0 {
            self.left = if self.recovers { u64::MAX } else { 0 };
            return Err(io::Error::new(io::ErrorKind::StorageFull, "simulated crash"));
        }
        self.left -= 1;
        Ok(())
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{}: not there", path.display()));
        let mut node = ROOT;
        for part in path.components() {
            if let Component::Normal(name) = part {
                node = *self.seen.get(&(node, name.to_owned())).ok_or_else(missing)?;
            }
        }
        Ok(node)
    }

    /// The folder of a path, and its name in there.
    fn place(&self, path: &Path) -> io::Result<(usize, OsString)> {
        let name = path.file_name().expect("a path with a name");
        Ok((self.find(path.parent().unwrap_or(Path::new("")))?, name.to_owned()))
    }

    fn names_in(&self, dir: usize) -> impl Iterator<Item = (&OsString, usize)> {
        self.seen.iter().filter(move |((d, _), _)| *d == dir).map(|((_, name), node)| (name, *node))
    }

    fn rename(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.pending.push(change);
    }

    fn add(&mut self, path: &Path, is_dir: bool) -> io::Result<usize> {
        let (dir, name) = self.place(path)?;
        self.nodes.push(Node { is_dir, ..Node::default() });
        let node = self.nodes.len() - 1;
        self.rename(Change { dir, gone: None, come: Some((name, node)) });
        Ok(node)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (node, (dir, name)) = (self.find(path)?, self.place(path)?);
        if self.names_in(node).next().is_some() {
            return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
        }
        self.rename(Change { dir, gone: Some((name, node)), come: None });
        Ok(())
    }
}

impl Disk for Simulated {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.change()?;
        if world.find(path).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        world.add(path, true).map(drop)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output + '_>> {
        let mut world = self.0.borrow_mut();
        world.change()?;
        let node = match world.find(path) {
            Ok(node) => node,
            Err(_) => world.add(path, false)?,
        };
        world.nodes[node].seen.clear();
        Ok(Box::new(Handle { disk: self, node }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.change()?;
        let (node, (dir, old), (other, new)) = (world.find(from)?, world.place(from)?, world.place(to)?);
        assert_eq!(dir, other, "only names within a folder are changed");
        if world.find(to).is_ok_and(|there| world.nodes[there].is_dir) {
            return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
        }
        world.rename(Change { dir, gone: Some((old, node)), come: Some((new, node)) });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.change()?;
        world.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.change()?;
        world.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.change()?;
        let dir = world.find(path)?;
        let (now, later) = std::mem::take(&mut world.pending).into_iter().partition(|c| c.dir == dir);
        world.pending = later;
        let now: Vec<Change> = now;
        now.iter().for_each(|change| change.apply(&mut world.durable));
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.borrow().find(path).is_ok()
    }

    fn entries(&self, path: &Path) -> io::Result<Vec<(OsString, bool)>> {
        let world = self.0.borrow();
        let dir = world.find(path)?;
        Ok(world.names_in(dir).map(|(name, node)| (name.clone(), world.nodes[node].is_dir)).collect())
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        self.read(path).map(|bytes| bytes.len() as u64)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let world = self.0.borrow();
        let node = world.find(path)?;
        Ok(world.nodes[node].seen.clone())
    }
}

struct Handle<'a> {
    disk: &'a Simulated,
    node: usize,
}

impl Write for Handle<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut world = self.disk.0.borrow_mut();
        let can = world.change();
        // The write that is cut off leaves its first half.
        let n = if can.is_ok() { bytes.len() } else { bytes.len() / 2 };
        world.nodes[self.node].seen.extend_from_slice(&bytes[..n]);
        can.map(|()| n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Handle<'_> {
    fn sync(&mut self) -> io::Result<()> {
        let mut world = self.disk.0.borrow_mut();
        world.change()?;
        let node = &mut world.nodes[self.node];
        node.durable = node.seen.clone();
        Ok(())
    }
}
