//! Arithmetic on dimensions and elements, in normal form.
//!
//! Sums of sums are one sum; `(floor(x / a) + b) / c` is `(x + a·b) / (a·c)`; a quotient whose terms all divide is a
//! sum. What passes a limit, or an i64, is [`Element::Unknown`]: nothing here fails.

use super::{EXPRESSION_BYTES_MAX, Element, SYMBOLS_MAX, Sum, SymbolDef, Symbols};
use crate::ids::{Id, SymbolId};
use crate::tensor::Dim;
use std::cell::RefCell;

/// The most terms of a sum.
const TERMS_MAX: usize = 8;

/// A graph's symbols and those that a rule makes as it goes; [`Symbols::adopt`] takes them over.
pub struct Scope<'a> {
    base: &'a Symbols,
    more: RefCell<Vec<SymbolDef>>,
}

impl<'a> Scope<'a> {
    pub fn new(base: &'a Symbols) -> Scope<'a> {
        Scope { base, more: RefCell::default() }
    }

    /// The definitions made in this scope.
    pub fn into_new(self) -> Vec<SymbolDef> {
        self.more.into_inner()
    }

    /// Whether what the dimension is rests on the data of a run.
    pub fn is_open(&self, dim: Dim) -> bool {
        match dim {
            // New ones: only their parts are in the table.
            Dim::Symbol(s) if s.index() >= self.base.len() => match self.def(s) {
                SymbolDef::Free => false,
                SymbolDef::Unknown => true,
                SymbolDef::Sum(sum) | SymbolDef::Quotient { of: sum, .. } => {
                    sum.terms.iter().any(|(s, _)| self.is_open(Dim::Symbol(*s)))
                }
                SymbolDef::Product(a, b) => self.is_open(Dim::Symbol(a)) || self.is_open(Dim::Symbol(b)),
            },
            dim => self.base.is_open(dim),
        }
    }

    /// Whether an element cannot be negative: dimensions are not, nor what is made of them by adding and multiplying.
    pub fn is_size(&self, e: Element) -> bool {
        let sum_is = |sum: &Sum| {
            sum.constant >= 0 && sum.terms.iter().all(|&(s, f)| f > 0 && self.is_size(Element::Symbol(s)))
        };
        match e {
            Element::Number(n) => n >= 0,
            Element::Unknown => false,
            Element::Symbol(s) => match self.def(s) {
                SymbolDef::Free | SymbolDef::Unknown => true,
                SymbolDef::Sum(sum) | SymbolDef::Quotient { of: sum, .. } => sum_is(&sum),
                SymbolDef::Product(a, b) => [a, b].into_iter().all(|s| self.is_size(Element::Symbol(s))),
            },
        }
    }

    fn def(&self, s: SymbolId) -> SymbolDef {
        let more = self.more.borrow();
        match s.index().checked_sub(self.base.len()) {
            Some(i) => more.get(i).cloned().unwrap_or(SymbolDef::Unknown),
            None => self.base.def(s).clone(),
        }
    }

    /// The symbol of that definition, made if it is new and small.
    fn intern(&self, def: SymbolDef) -> Element {
        if let Some(&s) = self.base.by_def.get(&def) {
            return Element::Symbol(s);
        }
        let at = self.more.borrow().iter().position(|d| *d == def);
        let first = self.base.len();
        if let Some(i) = at {
            return Element::Symbol(SymbolId::from_index(first + i));
        }
        let made = self.more.borrow().len();
        if first + made >= SYMBOLS_MAX || self.size(&def) > EXPRESSION_BYTES_MAX {
            return Element::Unknown;
        }
        self.more.borrow_mut().push(def);
        Element::Symbol(SymbolId::from_index(first + made))
    }

    /// Bytes that the expression takes when it is written out, or more.
    fn size(&self, def: &SymbolDef) -> usize {
        let of = |s: SymbolId| match s.index() < self.base.len() {
            true => self.base.name[s].len() + 4,
            false => self.size(&self.def(s)) + 4,
        };
        match def {
            SymbolDef::Free | SymbolDef::Unknown => 1,
            SymbolDef::Sum(sum) | SymbolDef::Quotient { of: sum, .. } => {
                12 + sum.terms.iter().map(|(s, _)| of(*s) + 12).sum::<usize>()
            }
            SymbolDef::Product(a, b) => of(*a) + of(*b) + 1,
        }
    }

    fn as_sum(&self, e: Element) -> Option<Sum> {
        match e {
            Element::Number(constant) => Some(Sum { terms: Vec::new(), constant }),
            Element::Symbol(s) => Some(match self.def(s) {
                SymbolDef::Sum(sum) => sum,
                _ => Sum { terms: vec![(s, 1)], constant: 0 },
            }),
            Element::Unknown => None,
        }
    }

    fn of_sum(&self, sum: Sum) -> Element {
        match sum.terms.as_slice() {
            [] => Element::Number(sum.constant),
            &[(s, 1)] if sum.constant == 0 => Element::Symbol(s),
            _ => self.intern(SymbolDef::Sum(sum)),
        }
    }

    pub fn add(&self, a: Element, b: Element) -> Element {
        self.combined(a, b, 1).map_or(Element::Unknown, |sum| self.of_sum(sum))
    }

    pub fn sub(&self, a: Element, b: Element) -> Element {
        self.combined(a, b, -1).map_or(Element::Unknown, |sum| self.of_sum(sum))
    }

    /// `a + factor * b`.
    fn combined(&self, a: Element, b: Element, factor: i64) -> Option<Sum> {
        let (mut sum, b) = (self.as_sum(a)?, self.as_sum(b)?);
        sum.constant = sum.constant.checked_add(b.constant.checked_mul(factor)?)?;
        for (s, f) in b.terms {
            let f = f.checked_mul(factor)?;
            match sum.terms.binary_search_by_key(&s, |(s, _)| *s) {
                Ok(i) => sum.terms[i].1 = sum.terms[i].1.checked_add(f)?,
                Err(i) => sum.terms.insert(i, (s, f)),
            }
        }
        sum.terms.retain(|(_, f)| *f != 0);
        (sum.terms.len() <= TERMS_MAX).then_some(sum)
    }

    pub fn mul(&self, a: Element, b: Element) -> Element {
        match (a, b) {
            (Element::Number(0), _) | (_, Element::Number(0)) => Element::Number(0),
            (Element::Number(n), e) | (e, Element::Number(n)) => {
                self.combined(Element::Number(0), e, n).map_or(Element::Unknown, |sum| self.of_sum(sum))
            }
            (Element::Symbol(_), Element::Symbol(_)) => self.expanded(a, b).unwrap_or(Element::Unknown),
            _ => Element::Unknown,
        }
    }

    /// The product of two sums, term by term.
    fn expanded(&self, a: Element, b: Element) -> Option<Element> {
        let (a, b) = (self.as_sum(a)?, self.as_sum(b)?);
        let mut all = Element::Number(a.constant.checked_mul(b.constant)?);
        let scaled = |s: SymbolId, f: i64| self.mul(Element::Number(f), Element::Symbol(s));
        for &(s, f) in &a.terms {
            all = self.add(all, scaled(s, f.checked_mul(b.constant)?));
            for &(t, g) in &b.terms {
                let Element::Symbol(product) = self.product(s, t) else { return None };
                all = self.add(all, scaled(product, f.checked_mul(g)?));
            }
        }
        for &(t, g) in &b.terms {
            all = self.add(all, scaled(t, g.checked_mul(a.constant)?));
        }
        Some(all)
    }

    /// Products of products are ordered, so that `a·b·c` is one symbol however it came to be.
    fn product(&self, a: SymbolId, b: SymbolId) -> Element {
        let mut factors = Vec::new();
        self.factors(a, &mut factors);
        self.factors(b, &mut factors);
        factors.sort_unstable();
        let mut all = factors[0];
        for &f in &factors[1..] {
            match self.intern(SymbolDef::Product(all, f)) {
                Element::Symbol(s) => all = s,
                other => return other,
            }
        }
        Element::Symbol(all)
    }

    fn factors(&self, s: SymbolId, factors: &mut Vec<SymbolId>) {
        match self.def(s) {
            SymbolDef::Product(a, b) => {
                self.factors(a, factors);
                self.factors(b, factors);
            }
            _ => factors.push(s),
        }
    }

    /// `floor(a / b)`; unknown where `b` is neither a positive number nor a factor of `a`.
    pub fn div(&self, a: Element, b: Element) -> Element {
        match b {
            Element::Number(n) if n >= 1 => {
                self.as_sum(a).and_then(|sum| self.quotient(sum, n)).unwrap_or(Element::Unknown)
            }
            Element::Symbol(_) if a == b => Element::Number(1),
            Element::Symbol(_) => match self.as_sum(b) {
                Some(Sum { terms, constant: 0 }) if terms.len() == 1 && terms[0].1 > 0 => {
                    let whole = self.without_factor(a, terms[0].0).unwrap_or(Element::Unknown);
                    self.div(whole, Element::Number(terms[0].1))
                }
                _ => Element::Unknown,
            },
            _ => Element::Unknown,
        }
    }

    /// `a / s`, if `a` is a product that has the factors of `s`.
    fn without_factor(&self, a: Element, s: SymbolId) -> Option<Element> {
        let sum = self.as_sum(a)?;
        let (&[(product, factor)], 0) = (sum.terms.as_slice(), sum.constant) else { return None };
        let (mut have, mut gone) = (Vec::new(), Vec::new());
        self.factors(product, &mut have);
        self.factors(s, &mut gone);
        for f in gone {
            let at = have.iter().position(|&h| h == f)?;
            have.remove(at);
        }
        let mut left = Element::Number(factor);
        for f in have {
            left = self.mul(left, Element::Symbol(f));
        }
        Some(left)
    }

    fn quotient(&self, mut of: Sum, by: i64) -> Option<Element> {
        if by == 1 || of.terms.is_empty() {
            return Some(self.of_sum(Sum { constant: of.constant.div_euclid(by), ..of }));
        }
        if of.terms.iter().all(|(_, f)| f % by == 0) {
            of.terms.iter_mut().for_each(|(_, f)| *f /= by);
            of.constant = of.constant.div_euclid(by);
            return Some(self.of_sum(of));
        }
        if let &[(s, 1)] = of.terms.as_slice()
            && let SymbolDef::Quotient { of: inner, by: inner_by } = self.def(s)
        {
            let constant = inner.constant.checked_add(inner_by.checked_mul(of.constant)?)?;
            return self.quotient(Sum { constant, ..inner }, inner_by.checked_mul(by)?);
        }
        // Whole multiples leave the quotient: (x + 7) / 2 is (x + 1) / 2 + 3.
        let whole = of.constant.div_euclid(by);
        of.constant = of.constant.rem_euclid(by);
        let part = self.intern(SymbolDef::Quotient { of, by });
        Some(self.add(part, Element::Number(whole)))
    }

    // ---- on dimensions -----------------------------------------------------------------------------

    /// The dimension that `e` is; unknown where it would be negative.
    pub fn to_dim(&self, e: Element) -> Dim {
        e.dim().unwrap_or(Dim::Unknown)
    }

    pub fn add_dims(&self, a: Dim, b: Dim) -> Dim {
        self.to_dim(self.add(a.into(), b.into()))
    }

    /// The number of elements of a shape.
    pub fn product_of(&self, dims: &[Dim]) -> Dim {
        self.to_dim(dims.iter().fold(Element::Number(1), |n, &d| self.mul(n, d.into())))
    }
}
