//! Which parameters a recipe means: names, `re:` patterns and the tokens `__ALL__` and `__ALL_PRUNABLE__`,
//! and their match against a model's parameter names.

use crate::diagnostic::{Diagnostic, Pos, nearest};
use crate::yaml::{Document, NodeId};
use regex::{Regex, RegexBuilder};

/// Largest compiled form of one `re:` pattern, in bytes.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// A list of patterns, as a recipe gives it.
#[derive(Clone, Debug)]
pub struct Selector {
    pub pos: Pos,
    pub patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
pub struct Pattern {
    pub pos: Pos,
    /// As written, `re:` included.
    pub text: String,
    pub rule: Rule,
}

#[derive(Clone, Debug)]
pub enum Rule {
    All,
    AllPrunable,
    Name,
    Regex(Expression),
}

/// A regular expression, anchored at the start only, as Python's `re.match`. It matches in linear time, so it knows
/// look-around in the two shapes only that recipes have: `(?!a)` and `(?=a)` at the start, and `((?!a).)*$`.
#[derive(Clone, Debug)]
pub struct Expression {
    matches: Regex,
    /// What must match too, or must not, each for itself.
    asides: Vec<(Regex, bool)>,
}

impl Expression {
    fn new(text: &str) -> Result<Expression, String> {
        // As written, where it says nothing of what does not match.
        let mut rest = text.strip_prefix('^').unwrap_or(text);
        let mut asides = Vec::new();
        // `((?!a).)*$`: nowhere an `a`.
        let nowhere = rest.strip_prefix("((?!").or_else(|| rest.strip_prefix("(?:(?!"));
        if let Some(inner) = nowhere.and_then(|inner| inner.strip_suffix(").)*$")) {
            return Ok(Expression {
                matches: compile("")?,
                asides: vec![(compile(&format!(".*(?:{inner})"))?, false)],
            });
        }
        while let Some(wanted) = ["(?!", "(?="].iter().position(|start| rest.starts_with(start)) {
            let end = group_end(rest).ok_or("a parenthesis is not closed")?;
            asides.push((compile(&rest[3..end])?, wanted == 1));
            rest = &rest[end + 1..];
        }
        Ok(Expression { matches: compile(if asides.is_empty() { text } else { rest })?, asides })
    }

    pub fn is_match(&self, name: &str) -> bool {
        self.matches.is_match(name)
            && self.asides.iter().all(|(aside, wanted)| aside.is_match(name) == *wanted)
    }
}

/// The place of the parenthesis that closes the group which `text` begins with.
fn group_end(text: &str) -> Option<usize> {
    let (mut depth, mut escaped, mut in_class) = (0_usize, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => depth += 1,
            ')' if !in_class => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

impl Selector {
    /// `__ALL_PRUNABLE__`, as a class means it whose recipe names no parameters.
    pub(crate) fn all_prunable(pos: Pos) -> Selector {
        let text = "__ALL_PRUNABLE__".to_owned();
        Selector { pos, patterns: vec![Pattern { pos, text, rule: Rule::AllPrunable }] }
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Selector) -> bool {
        self.patterns.iter().map(|p| &p.text).eq(other.patterns.iter().map(|p| &p.text))
    }
}

impl Pattern {
    /// Whether the pattern means this parameter.
    pub fn matches(&self, name: &str, prunable: bool) -> bool {
        match &self.rule {
            Rule::All => true,
            Rule::AllPrunable => prunable,
            Rule::Name => self.text == name,
            Rule::Regex(regex) => regex.is_match(name),
        }
    }

    /// Whether the pattern means this layer: its name, a module above it, or a `re:` pattern.
    pub fn covers_layer(&self, layer: &str) -> bool {
        match &self.rule {
            Rule::Name => layer
                .strip_prefix(self.text.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
            _ => self.matches(layer, true),
        }
    }
}

/// Reads one pattern or a list of them; a bad regular expression is reported with its place.
pub(crate) fn selector(
    doc: &Document,
    file: &str,
    node: NodeId,
    found: &mut Vec<Diagnostic>,
) -> Option<Selector> {
    let single = [node];
    let is_list = matches!(doc.data(node), crate::yaml::Data::List(_));
    let nodes = if is_list { doc.list(node) } else { &single };
    let mut patterns = Vec::with_capacity(nodes.len());
    for &item in nodes {
        let text = doc.text(item).map_or_else(|| doc.show(item), str::to_owned);
        let rule = match text.as_str() {
            "__ALL__" => Rule::All,
            "__ALL_PRUNABLE__" => Rule::AllPrunable,
            _ => match text.strip_prefix("re:") {
                None => Rule::Name,
                Some(expression) => match Expression::new(expression) {
                    Ok(regex) => Rule::Regex(regex),
                    Err(reason) => {
                        let message = format!("`{text}` is no regular expression: {reason}");
                        let around = reason.contains("look-around");
                        let help = if around {
                            "known are (?!a) and (?=a) at the start, and ((?!a).)*$"
                        } else {
                            ""
                        };
                        found.push(Diagnostic::error(file, doc.pos(item), message, help));
                        return None;
                    }
                },
            },
        };
        patterns.push(Pattern { pos: doc.pos(item), text, rule });
    }
    Some(Selector { pos: doc.pos(node), patterns })
}

fn compile(expression: &str) -> Result<Regex, String> {
    let anchored = format!("^(?:{expression})");
    RegexBuilder::new(&anchored).size_limit(REGEX_BYTES_MAX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => format!("it compiles to more than {limit} bytes"),
        error => {
            let text = error.to_string();
            text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    })
}

/// What to say about a pattern that matched nothing: the names nearest to it.
pub(crate) fn no_match_help<'a>(pattern: &Pattern, names: impl IntoIterator<Item = &'a str>) -> String {
    let plain: String = pattern
        .text
        .trim_start_matches("re:")
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-'))
        .collect();
    let close = nearest(&plain, names, 3);
    if close.is_empty() {
        "the names of a model: `lacuna analyze`".to_owned()
    } else {
        format!("nearest: {}", close.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right column is Python's `re.match(pattern, name) is not None`.
    #[test]
    fn expressions_match_as_in_python() {
        let cases = [
            ("conv", "conv1.weight", true),
            ("conv", "layer1.conv1.weight", false),
            ("^((?!dfl).)*$", "model.22.dfl.conv.weight", false),
            ("^((?!dfl).)*$", "model.22.conv.weight", true),
            ("((?!a|b).)*$", "xbx", false),
            ("(?!fc).*weight", "fc.weight", false),
            ("(?!fc).*weight", "conv.weight", true),
            ("^(?!.*bn)(?=.*weight)layer", "layer1.weight", true),
            ("^(?!.*bn)(?=.*weight)layer", "layer1.bn.weight", false),
            ("^(?!.*bn)(?=.*weight)layer", "layer1.bias", false),
            (r"(?!a[)]\))a.*", "a)).", false),
            (r"(?!a[)]\))a.*", "ab", true),
            ("a|b", "b", true),
            ("a|b", "cb", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Expression::new(pattern).unwrap().is_match(name), expected, "{pattern} {name}");
        }
        for pattern in ["a(?!b)", "(?<=a)b", "(?!a", "(a", r"(a)\1"] {
            assert!(Expression::new(pattern).is_err(), "{pattern}");
        }
    }
}
