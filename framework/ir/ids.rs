//! Typed row numbers. Every table of a [`Graph`](crate::Graph) is indexed by an id of its own type,
//! so that an op's row can never be used to look up a value.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// A row number of one table.
pub trait Id: Copy + Eq {
    fn from_index(index: usize) -> Self;
    fn index(self) -> usize;
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl Id for $name {
            fn from_index(index: usize) -> Self {
                $name(u32::try_from(index).expect("a table holds fewer than 2^32 rows"))
            }
            fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    )*};
}

ids! {
    /// One op: a row of the `op_*` columns.
    OpId "op";
    /// One value (input, constant or result of an op): a row of the `value_*` columns.
    ValueId "v";
    /// One graph inside of a graph, which an op runs.
    BodyId "body";
    /// One constant's bytes.
    ConstId "const";
    /// One symbolic dimension, such as the batch.
    SymbolId "sym";
}

impl ValueId {
    /// Stands in an operand list where an optional input is absent.
    pub const NONE: ValueId = ValueId(u32::MAX);

    pub fn is_none(self) -> bool {
        self == ValueId::NONE
    }
}

/// A column: a vector indexed by one id type.
#[derive(Clone, PartialEq, Eq)]
pub struct IdVec<I, T> {
    rows: Vec<T>,
    id: PhantomData<I>,
}

impl<I: Id, T> IdVec<I, T> {
    pub const fn new() -> Self {
        IdVec { rows: Vec::new(), id: PhantomData }
    }

    /// A column with `len` equal rows: a side table for an analysis.
    pub fn filled(value: T, len: usize) -> Self
    where
        T: Clone,
    {
        IdVec { rows: vec![value; len], id: PhantomData }
    }

    pub fn push(&mut self, row: T) -> I {
        self.rows.push(row);
        I::from_index(self.rows.len() - 1)
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn get(&self, id: I) -> Option<&T> {
        self.rows.get(id.index())
    }

    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        self.rows.iter().enumerate().map(|(i, row)| (I::from_index(i), row))
    }

    pub fn ids(&self) -> impl Iterator<Item = I> + use<I, T> {
        (0..self.rows.len()).map(I::from_index)
    }

    pub fn as_slice(&self) -> &[T] {
        &self.rows
    }
}

impl<I: Id, T> Default for IdVec<I, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<I, T> IntoIterator for IdVec<I, T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;
    fn into_iter(self) -> Self::IntoIter {
        self.rows.into_iter()
    }
}

impl<I: Id, T> Index<I> for IdVec<I, T> {
    type Output = T;
    fn index(&self, id: I) -> &T {
        &self.rows[id.index()]
    }
}

impl<I: Id, T> IndexMut<I> for IdVec<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.rows[id.index()]
    }
}

impl<I, T: fmt::Debug> fmt::Debug for IdVec<I, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.fmt(f)
    }
}

/// A run of rows in a pool: `start..start + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Range32 {
    pub start: u32,
    pub len: u32,
}

impl Range32 {
    pub fn of<T>(self, pool: &[T]) -> &[T] {
        &pool[self.start as usize..][..self.len as usize]
    }

    pub fn of_mut<T>(self, pool: &mut [T]) -> &mut [T] {
        &mut pool[self.start as usize..][..self.len as usize]
    }

    /// Appends `rows` to the pool and returns where they lie.
    pub fn append<T: Clone>(pool: &mut Vec<T>, rows: &[T]) -> Range32 {
        let start = u32::try_from(pool.len()).expect("a pool holds fewer than 2^32 rows");
        let len = u32::try_from(rows.len()).expect("a list holds fewer than 2^32 rows");
        pool.extend_from_slice(rows);
        Range32 { start, len }
    }
}
