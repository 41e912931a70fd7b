//! What people see: lines, tables, progress bars. Colour and bars only on a terminal, and not where `NO_COLOR`
//! (<https://no-color.org>) or `TERM=dumb` asks for plain text.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt;
use std::io::{IsTerminal, Write};

/// Prints a line to stdout. A reader that went away (`| head`) is no error.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Prints what a machine reads.
pub fn say_json(value: &serde_json::Value) {
    say(format_args!("{value:#}"));
}

/// A remark that does not stop the work, to stderr.
pub fn note(kind: &str, line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{kind}: {line}");
}

pub fn error(line: impl fmt::Display) {
    let red = colour(std::io::stderr().is_terminal());
    let (on, off) = if red { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let _ = writeln!(std::io::stderr().lock(), "{on}error:{off} {line}");
}

fn colour(terminal: bool) -> bool {
    terminal
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
}

/// Bold on a terminal.
pub fn bold(text: &str) -> String {
    if colour(std::io::stdout().is_terminal()) { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

/// A bar of `len` steps on stderr, invisible unless that is a terminal.
pub fn bar(len: u64) -> ProgressBar {
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    let target = if dumb { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(len), target);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {elapsed} < {eta}  {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A table with a header. Columns whose title begins with `>` are set flush right.
pub fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let chars = |s: &str| s.chars().count();
    let plain: Vec<&str> = titles.iter().map(|t| t.trim_start_matches('>')).collect();
    let width = |c: usize| {
        let cells = rows.iter().map(|row| row.get(c).map_or(0, |cell| chars(cell)));
        cells.max().unwrap_or(0).max(chars(plain[c]))
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cell: &dyn Fn(usize) -> String| {
        let cells = (0..titles.len()).map(|c| {
            let (text, pad) = (cell(c), widths[c]);
            if titles[c].starts_with('>') { format!("{text:>pad$}") } else { format!("{text:<pad$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(&|c| plain[c].to_owned());
    let mut out = bold(&head);
    for row in rows {
        out.push('\n');
        out += &line(&|c| row.get(c).cloned().unwrap_or_default());
    }
    out
}

/// `1234567` as `1.2 MB`.
pub fn bytes(n: u64) -> String {
    match n {
        0..=9_999 => format!("{n} B"),
        10_000..=999_999 => format!("{:.0} kB", n as f64 / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

/// `zeros/all (share)`.
pub fn zeros(zeros: u64, all: u64) -> String {
    if all == 0 {
        String::new()
    } else {
        format!("{zeros}/{all} ({:.2} %)", zeros as f64 / all as f64 * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [vec!["conv1".to_owned(), "9".to_owned()], vec!["é".to_owned(), "1234".to_owned()]];
        assert_eq!(table(&["op", ">zeros"], &rows), "op     zeros\nconv1      9\né       1234");
    }

    #[test]
    fn sizes_and_shares_read_well() {
        assert_eq!([bytes(9_999), bytes(12_400), bytes(1_250_000)], ["9999 B", "12 kB", "1.2 MB"]);
        assert_eq!(zeros(2074, 2304), "2074/2304 (90.02 %)");
    }
}
