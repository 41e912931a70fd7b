//! What the recipe language says about a file: place, severity, message and what to do about it.
//! Also the spelling helper behind every "did you mean".

use std::fmt;

/// A place in a recipe file. Both numbers start at 1; column counts characters. (0, 0) is the file as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord)]
pub struct Pos {
    pub line: u32,
    pub column: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    Error,
    Warning,
}

/// One finding. Displayed as `file:line:column: error: message (help)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    pub file: String,
    pub line: u32,
    pub column: u32,
    pub severity: Severity,
    pub message: String,
    /// What to do; empty where the message says it all.
    pub help: String,
    /// The line of the file with a mark below the place, as two lines; empty for the file as a whole.
    pub excerpt: String,
}

impl Diagnostic {
    pub fn error(file: &str, pos: Pos, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic {
            file: file.to_owned(),
            line: pos.line,
            column: pos.column,
            severity: Severity::Error,
            message: message.into(),
            help: help.into(),
            excerpt: String::new(),
        }
    }

    pub fn warning(file: &str, pos: Pos, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(file, pos, message, help) }
    }
}

/// Part of a line that is short enough to show, around character `at`; and what goes below it, up to that character.
fn window(line: &str, at: usize) -> (String, String) {
    const CHARS: usize = 96;
    let begin = if at < CHARS { 0 } else { at - CHARS / 2 };
    let shown: String = line.chars().skip(begin).take(CHARS).collect();
    // Tabs keep their width.
    let before = shown.chars().take(at - begin).map(|c| if c == '\t' { c } else { ' ' }).collect();
    (shown, before)
}

/// Most diagnostics that are given an excerpt: nobody reads more.
const EXCERPTS_MAX: usize = 100;

/// Gives diagnostics their line of the text that they are about.
pub(crate) fn quote_lines(diagnostics: &mut [Diagnostic], text: &str) {
    let with_place = diagnostics.iter_mut().filter(|d| d.line > 0);
    let mut places: Vec<&mut Diagnostic> = with_place.take(EXCERPTS_MAX).collect();
    places.sort_by_key(|d| d.line);
    let mut lines = (1_u32..).zip(text.lines()).peekable();
    for diagnostic in places {
        while lines.next_if(|(number, _)| *number < diagnostic.line).is_some() {}
        if let Some((_, line)) = lines.peek().filter(|(number, _)| *number == diagnostic.line) {
            let number = diagnostic.line.to_string();
            let (shown, before) = window(line, diagnostic.column.saturating_sub(1) as usize);
            diagnostic.excerpt = format!("  {number} | {shown}\n  {:1$} | {before}^", "", number.len());
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, " {severity}: {}", self.message)?;
        if !self.help.is_empty() {
            write!(f, " ({})", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// The diagnostics as lines of text, one each.
pub fn render(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(|d| format!("{d}\n")).collect()
}

/// The `count` candidates closest to `name`, nearest first; those further than half its length are left out.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    count: usize,
) -> Vec<&'a str> {
    let limit = name.chars().count().div_ceil(2).max(2);
    let mut ranked: Vec<(usize, &str)> =
        candidates.into_iter().map(|c| (edit_distance(name, c), c)).filter(|&(d, _)| d <= limit).collect();
    ranked.sort();
    ranked.dedup();
    ranked.into_iter().take(count).map(|(_, c)| c).collect()
}

/// "did you mean `x`?" for the closest candidate, or the empty string.
pub(crate) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, candidates, 1).first() {
        Some(best) => format!("did you mean `{best}`?"),
        None => String::new(),
    }
}

/// Levenshtein distance, case-insensitive, over the first 128 characters of each.
fn edit_distance(a: &str, b: &str) -> usize {
    let fold = |s: &str| s.chars().take(128).flat_map(char::to_lowercase).collect::<Vec<char>>();
    let (a, b) = (fold(a), fold(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &ca) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("ABC", "abc"), 0);
    }

    #[test]
    fn nearest_is_ranked_and_bounded() {
        assert_eq!(
            nearest("fc.weigth", ["conv1.weight", "fc.weight", "fc.bias"], 2),
            ["fc.weight", "fc.bias"]
        );
        assert!(nearest("zzz", ["start_epoch"], 3).is_empty());
    }

    #[test]
    fn excerpts_mark_the_column() {
        let text = "a: 1\n\tb: é x\n";
        let mut found: Vec<Diagnostic> = [(2, 6), (1, 1), (9, 1), (0, 0), (2, 1)]
            .map(|(line, column)| Diagnostic::error("r.yaml", Pos { line, column }, "bad", ""))
            .into();
        quote_lines(&mut found, text);
        let excerpts: Vec<&str> = found.iter().map(|d| d.excerpt.as_str()).collect();
        assert_eq!(
            excerpts,
            ["  2 | \tb: é x\n    | \t    ^", "  1 | a: 1\n    | ^", "", "", "  2 | \tb: é x\n    | ^"]
        );
        let mut long = [Diagnostic::error("r.yaml", Pos { line: 1, column: 4000 }, "bad", "")];
        quote_lines(&mut long, &"x".repeat(5000));
        assert_eq!(long[0].excerpt.lines().map(|l| l.len()).collect::<Vec<_>>(), [6 + 96, 6 + 48 + 1]);
    }

    #[test]
    fn display_has_place_severity_and_help() {
        let d = Diagnostic::error("r.yaml", Pos { line: 3, column: 7 }, "bad", "do this");
        assert_eq!(d.to_string(), "r.yaml:3:7: error: bad (do this)");
        assert_eq!(Diagnostic::error("r.yaml", Pos::default(), "bad", "").to_string(), "r.yaml: error: bad");
    }
}
