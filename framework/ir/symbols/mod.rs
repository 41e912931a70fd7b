//! Symbolic dimensions: their names, and what is known of each.
//!
//! A dimension that is not a number is a symbol. Some are free (a caller's inputs say what they are), some are only
//! known once an op has run, and the others are defined by arithmetic on earlier symbols. Definitions are kept in a
//! normal form and each form stands once in the table, so that two dimensions that must be equal are the same
//! symbol: the branches of a residual network of any height join without a question.
//!
//! ```text
//! symbol   name        definition
//! sym0     height      Free
//! sym1     (sym0+1)/2  Quotient { of: height + 1, by: 2 }
//! sym2                 Sum sym1 + 4
//! ```

mod arith;
pub(crate) mod text;

pub use arith::Scope;

use crate::ids::{Id, IdVec, SymbolId};
use crate::tensor::Dim;
use std::collections::HashMap;

/// The most symbols of one graph.
pub const SYMBOLS_MAX: usize = 1 << 14;
/// The most bytes of an expression's name, and so of its size: what is larger is not kept, but is unknown.
pub const EXPRESSION_BYTES_MAX: usize = 200;

/// `constant + Σ factor · symbol`: terms are sorted by symbol, and no factor is 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Sum {
    pub terms: Vec<(SymbolId, i64)>,
    pub constant: i64,
}

/// What is known of a symbol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SymbolDef {
    /// A caller's inputs say what it is.
    Free,
    /// What an op's data decide.
    Unknown,
    /// A sum that is neither a number nor one symbol.
    Sum(Sum),
    /// The product of two symbols, the lower one first.
    Product(SymbolId, SymbolId),
    /// `floor(of / by)`, `by` at least 2.
    Quotient { of: Sum, by: i64 },
}

/// One element of an integer value, as far as it is known: shape arithmetic is done on these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    Number(i64),
    Symbol(SymbolId),
    Unknown,
}

impl Element {
    pub fn number(self) -> Option<i64> {
        match self {
            Element::Number(n) => Some(n),
            _ => None,
        }
    }

    /// The dimension of that size. `None` for a negative number.
    pub fn dim(self) -> Option<Dim> {
        match self {
            Element::Number(n) => u64::try_from(n).ok().map(Dim::Fixed),
            Element::Symbol(s) => Some(Dim::Symbol(s)),
            Element::Unknown => Some(Dim::Unknown),
        }
    }
}

impl From<Dim> for Element {
    fn from(dim: Dim) -> Element {
        match dim {
            Dim::Fixed(n) => i64::try_from(n).map_or(Element::Unknown, Element::Number),
            Dim::Symbol(s) => Element::Symbol(s),
            Dim::Unknown => Element::Unknown,
        }
    }
}

/// The table of symbols: row `s` of each column describes symbol `s`. Names are distinct.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    name: IdVec<SymbolId, String>,
    def: IdVec<SymbolId, SymbolDef>,
    /// Whether an [`SymbolDef::Unknown`] takes part in the definition.
    open: IdVec<SymbolId, bool>,
    by_name: HashMap<String, SymbolId>,
    by_def: HashMap<SymbolDef, SymbolId>,
}

impl Symbols {
    pub fn len(&self) -> usize {
        self.name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.name.is_empty()
    }

    pub fn get(&self, symbol: SymbolId) -> Option<&String> {
        self.name.get(symbol)
    }

    pub fn iter(&self) -> impl Iterator<Item = (SymbolId, &String)> {
        self.name.iter()
    }

    pub fn ids(&self) -> impl Iterator<Item = SymbolId> + use<> {
        self.name.ids()
    }

    pub fn as_slice(&self) -> &[String] {
        self.name.as_slice()
    }

    pub fn def(&self, symbol: SymbolId) -> &SymbolDef {
        &self.def[symbol]
    }

    pub fn named(&self, name: &str) -> Option<SymbolId> {
        self.by_name.get(name).copied()
    }

    /// Whether what the dimension is rests on the data of a run.
    pub fn is_open(&self, dim: Dim) -> bool {
        match dim {
            Dim::Fixed(_) => false,
            Dim::Symbol(s) => self.open.get(s).copied().unwrap_or(true),
            Dim::Unknown => true,
        }
    }

    /// The same table for a graph inside, where what data decide outside is given.
    pub fn closed(&self) -> Symbols {
        let mut closed = Symbols::default();
        for (s, name) in self.name.iter() {
            let def = match &self.def[s] {
                SymbolDef::Unknown => SymbolDef::Free,
                def => def.clone(),
            };
            closed.push(name.clone(), def);
        }
        closed
    }

    /// The free symbol of that name, made if it is new.
    pub fn free(&mut self, name: &str) -> SymbolId {
        self.named(name).unwrap_or_else(|| self.push(name.to_string(), SymbolDef::Free))
    }

    /// The unknown symbol of that name, made if it is new.
    pub fn unknown(&mut self, name: &str) -> SymbolId {
        self.named(name).unwrap_or_else(|| self.push(name.to_string(), SymbolDef::Unknown))
    }

    /// A name that no symbol has, like `wanted`.
    pub fn unused(&self, wanted: &str) -> String {
        let mut name = if wanted.is_empty() { "dim".to_string() } else { wanted.to_string() };
        let mut n = 1;
        while self.by_name.contains_key(&name) {
            n += 1;
            name = format!("{wanted}_{n}");
        }
        name
    }

    /// Adds definitions that a [`Scope`] over this table made: they count on from its last row.
    pub fn adopt(&mut self, defs: Vec<SymbolDef>) {
        for def in defs {
            let name = self.unused(&self.text_of(&def));
            self.push(name, def);
        }
    }

    fn push(&mut self, name: String, def: SymbolDef) -> SymbolId {
        let open = match &def {
            SymbolDef::Free => false,
            SymbolDef::Unknown => true,
            SymbolDef::Sum(sum) | SymbolDef::Quotient { of: sum, .. } => {
                sum.terms.iter().any(|(s, _)| self.open[*s])
            }
            SymbolDef::Product(a, b) => self.open[*a] || self.open[*b],
        };
        let id = self.def.push(def.clone());
        self.open.push(open);
        self.by_name.insert(name.clone(), id);
        self.name.push(name);
        if !matches!(def, SymbolDef::Free | SymbolDef::Unknown) {
            self.by_def.insert(def, id);
        }
        id
    }

    /// The expression, as people read it and the text form writes it: names that are not plain stand in quotes.
    pub fn text_of(&self, def: &SymbolDef) -> String {
        let term = |s: SymbolId| match &self.def[s] {
            SymbolDef::Free => quoted_unless_plain(&self.name[s]),
            SymbolDef::Unknown => format!("?{}", quoted_unless_plain(&self.name[s])),
            def => format!("({})", self.text_of(def)),
        };
        let sum_text = |sum: &Sum| {
            let mut out = String::new();
            for &(s, factor) in &sum.terms {
                if factor > 0 && !out.is_empty() {
                    out.push('+');
                }
                match factor {
                    1 => {}
                    -1 => out.push('-'),
                    n => out.push_str(&format!("{n}*")),
                }
                out.push_str(&term(s));
            }
            if sum.constant != 0 || out.is_empty() {
                let plus = if sum.constant >= 0 && !out.is_empty() { "+" } else { "" };
                out.push_str(&format!("{plus}{}", sum.constant));
            }
            out
        };
        match def {
            SymbolDef::Free | SymbolDef::Unknown => String::new(),
            SymbolDef::Sum(sum) => sum_text(sum),
            SymbolDef::Product(a, b) => format!("{}*{}", term(*a), term(*b)),
            SymbolDef::Quotient { of, by } => format!("({})/{by}", sum_text(of)),
        }
    }

    /// What `symbol` is where every earlier one is as in `known`. `None`: not known, or negative, or too large.
    pub fn evaluate(&self, symbol: SymbolId, known: &[Option<u64>]) -> Option<u64> {
        let value = |s: SymbolId| known.get(s.index()).copied().flatten().and_then(|n| i64::try_from(n).ok());
        let sum = |sum: &Sum| {
            sum.terms.iter().try_fold(sum.constant, |acc, &(s, f)| acc.checked_add(value(s)?.checked_mul(f)?))
        };
        let n = match &self.def[symbol] {
            SymbolDef::Free | SymbolDef::Unknown => return known.get(symbol.index()).copied().flatten(),
            SymbolDef::Sum(of) => sum(of)?,
            SymbolDef::Product(a, b) => value(*a)?.checked_mul(value(*b)?)?,
            SymbolDef::Quotient { of, by } => sum(of)?.checked_div_euclid(*by)?,
        };
        u64::try_from(n).ok()
    }
}

impl std::ops::Index<SymbolId> for Symbols {
    type Output = String;
    fn index(&self, symbol: SymbolId) -> &String {
        &self.name[symbol]
    }
}

/// Whether a name of the text form needs no quotes.
pub(crate) fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.')
}

fn quoted_unless_plain(name: &str) -> String {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts_well && name.chars().all(is_plain) { name.to_string() } else { crate::text::quote(name) }
}
