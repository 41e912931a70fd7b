//! Reads the expressions that [`Symbols::text_of`](super::Symbols::text_of) writes.
//!
//! ```text
//! sum   = ["-"] term { ("+" | "-") term }
//! term  = atom { "*" atom }
//! atom  = number | name | "?" name | "(" sum ")" [ "/" number ]
//! ```

use super::{Element, Scope, is_plain};
use crate::ids::SymbolId;

/// Deeper ones are refused.
const DEPTH_MAX: usize = 32;

/// Reads an expression at the start of `text`; returns it and what follows it. `symbol` looks a name up: the flag says
/// whether it stood behind a question mark.
pub fn parse<'t>(
    text: &'t str,
    scope: &Scope<'_>,
    symbol: &dyn Fn(&str, bool) -> Option<SymbolId>,
) -> Result<(Element, &'t str), String> {
    let mut reader = Reader { rest: text, scope, symbol, depth: 0 };
    let e = reader.sum()?;
    Ok((e, reader.rest))
}

struct Reader<'t, 's> {
    rest: &'t str,
    scope: &'s Scope<'s>,
    symbol: &'s dyn Fn(&str, bool) -> Option<SymbolId>,
    depth: usize,
}

impl Reader<'_, '_> {
    fn eat(&mut self, c: char) -> bool {
        let found = self.rest.strip_prefix(c);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn sum(&mut self) -> Result<Element, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("an expression is nested deeper than {DEPTH_MAX}"));
        }
        let mut all = Element::Number(0);
        let mut minus = self.eat('-');
        loop {
            let term = self.term()?;
            all = if minus { self.scope.sub(all, term) } else { self.scope.add(all, term) };
            if self.eat('+') {
                minus = false;
            } else if self.eat('-') {
                minus = true;
            } else {
                break;
            }
        }
        self.depth -= 1;
        Ok(all)
    }

    fn term(&mut self) -> Result<Element, String> {
        let mut all = self.atom()?;
        while self.eat('*') {
            let next = self.atom()?;
            all = self.scope.mul(all, next);
        }
        Ok(all)
    }

    fn atom(&mut self) -> Result<Element, String> {
        if self.eat('(') {
            let inner = self.sum()?;
            if !self.eat(')') {
                return Err(format!("expected ')' before '{}'", crate::text::start_of(self.rest)));
            }
            if !self.eat('/') {
                return Ok(inner);
            }
            let by = self.number()?;
            return Ok(self.scope.div(inner, Element::Number(by)));
        }
        if self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            return self.number().map(Element::Number);
        }
        let unknown = self.eat('?');
        let name = self.name()?;
        let symbol = (self.symbol)(&name, unknown);
        symbol.map(Element::Symbol).ok_or_else(|| format!("symbol '{name}' stands in no dimension above"))
    }

    fn number(&mut self) -> Result<i64, String> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        digits.parse().map_err(|_| format!("'{digits}' is no number that fits"))
    }

    fn name(&mut self) -> Result<String, String> {
        if self.rest.starts_with('"') {
            let (name, rest) = crate::text::quoted_name(self.rest)?;
            self.rest = rest;
            return Ok(name);
        }
        let end = self.rest.find(|c| !is_plain(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() {
            return Err(format!("expected a name before '{}'", crate::text::start_of(rest)));
        }
        self.rest = rest;
        Ok(name.to_string())
    }
}
