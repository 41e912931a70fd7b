//! A schedule as a page to look at: sparsity and learning rate over the epochs, what else happens when, and the table of
//! events. One file, nothing loaded from elsewhere, no script.

use crate::plan::{Action, ParamRow};
use crate::schedule::Schedule;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The drawing area of one chart, in pixels.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 200.0;
/// Room for the numbers on the left and below.
const LEFT: f64 = 60.0;
const BELOW: f64 = 24.0;
const COLOURS: [&str; 6] = ["#4472c4", "#c77b30", "#2f9e6e", "#8e6bbf", "#b8474f", "#5b8a99"];

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8883; }
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: currentColor; opacity: .75; }
svg .axis { stroke: var(--line); } svg polyline { fill: none; stroke-width: 1.5; }
svg .all { stroke: currentColor; stroke-width: 2.5; } svg .mark { stroke: currentColor; stroke-dasharray: 3 3; opacity: .5; }
ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; }
li i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
table { border-collapse: collapse; } th { text-align: left; }
th, td { padding: .15rem 1rem .15rem 0; border-bottom: 1px solid var(--line); } td.number { text-align: right; }
";

/// The page of a schedule that was compiled for `params`. Sparsity is what the recipe asks for; what a model has of itself
/// (`__FROM_PARAM__`, zeros that are only kept) is not in it.
pub fn picture(schedule: &Schedule, params: &[ParamRow], title: &str) -> String {
    let epochs = schedule.steps as f64 / f64::from(schedule.steps_per_epoch.max(1));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\n<style>{STYLE}</style>\n<h1>{0}</h1>\n<p>{epochs} epochs of {1} steps</p>\n",
        escape_html(title),
        schedule.steps_per_epoch
    );
    let (series, all) = sparsities(schedule, params);
    if !series.is_empty() {
        html += "<h2>Sparsity</h2>\n";
        let mut lines: Vec<Line> = Vec::new();
        let mut legend = String::from("<ul>");
        for (number, (name, points)) in series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            lines.push(Line { style: format!("stroke=\"{colour}\""), points: steps_of(points, epochs) });
            if number < COLOURS.len() {
                let _ = write!(legend, "<li><i style=\"background:{colour}\"></i>{}</li>", escape_html(name));
            }
        }
        lines.push(Line { style: "class=\"all\"".to_owned(), points: steps_of(&all, epochs) });
        let more = match series.len().saturating_sub(COLOURS.len()) {
            0 => String::new(),
            more => format!("<li>and {more} more</li>"),
        };
        html += &chart(&lines, epochs, 1.0, &marks(schedule));
        let _ = writeln!(html, "{legend}{more}<li><b>bold: of all prunable weights</b></li></ul>");
    }
    let rates = learning_rates(schedule);
    let highest = rates.iter().map(|&(_, rate)| rate).fold(0.0_f64, f64::max);
    if highest > 0.0 {
        html += "<h2>Learning rate</h2>\n";
        let line = Line { style: format!("stroke=\"{}\"", COLOURS[0]), points: rates };
        html += &chart(&[line], epochs, highest, &marks(schedule));
    }
    html += "<h2>Events</h2>\n<table>\n<tr><th>epoch<th>step<th>modifier<th>matched<th>value</tr>\n";
    for row in schedule.describe() {
        let _ = writeln!(
            html,
            "<tr><td class=\"number\">{:.2}<td class=\"number\">{}<td>{}<td class=\"number\">{}<td>{}</tr>",
            row.epoch,
            row.step,
            escape_html(row.modifier),
            row.matched.map_or(String::new(), |n| n.to_string()),
            escape_html(&row.value)
        );
    }
    html + "</table>\n</html>\n"
}

/// Epoch and value.
type Points = Vec<(f64, f64)>;

struct Line {
    style: String,
    points: Points,
}

/// What each pruning asks for by epoch, with its name; and the share of all prunable weights that is zero then.
fn sparsities(schedule: &Schedule, params: &[ParamRow]) -> (Vec<(String, Points)>, Points) {
    let size = |row: &ParamRow| row.shape.iter().map(|&n| n as f64).product::<f64>();
    let whole = params.iter().filter(|row| row.prunable).map(size).sum::<f64>().max(1.0);
    let mut now = vec![0.0; params.len()];
    let mut series: BTreeMap<(u32, u32), (String, Points)> = BTreeMap::new();
    let (mut zeros, mut all) = (0.0, vec![(0.0, 0.0)]);
    for event in &schedule.events {
        let (range, sparsity) = match event.action {
            Action::SetSparsity { params, sparsity, .. } => (params, sparsity),
            Action::ReleaseMasks { params } => (params, 0.0),
            _ => continue,
        };
        let name = || format!("{}, {} tensors", schedule.modifier(event), range.len);
        let one = series.entry((event.modifier, range.start)).or_insert_with(|| (name(), Vec::new()));
        one.1.push((event.epoch, sparsity));
        for &row in schedule.params(range) {
            let row = row as usize;
            if params[row].prunable {
                zeros += (sparsity - now[row]) * size(&params[row]);
                now[row] = sparsity;
            }
        }
        all.push((event.epoch, zeros / whole));
    }
    // What was only ever released has nothing to show.
    let asked = series.into_values().filter(|(_, points)| points.iter().any(|&(_, y)| y > 0.0));
    (asked.collect(), all)
}

/// Points with a corner at every change, up to the last epoch.
fn steps_of(points: &Points, epochs: f64) -> Points {
    let mut out: Points = Vec::new();
    // Closer than half a pixel nothing is seen.
    let near = epochs / WIDTH / 2.0;
    for &(x, y) in points {
        match out.last().copied() {
            Some((last, _)) if x - last < near && x > 0.0 && out.len() > 1 => {
                out.pop();
                out.push((last, y));
            }
            Some((_, before)) => out.extend([(x, before), (x, y)]),
            None => out.push((x, y)),
        }
    }
    out.extend(out.last().map(|&(_, y)| (epochs, y)));
    out
}

fn learning_rates(schedule: &Schedule) -> Points {
    let samples = schedule.steps.min(2 * WIDTH as u64);
    let step = |n: u64| (u128::from(schedule.steps) * u128::from(n) / u128::from(samples.max(1))) as u64;
    let at = |step: u64| {
        let rate = schedule.learning_rate(step.min(schedule.steps.saturating_sub(1)))?;
        Some((step as f64 / f64::from(schedule.steps_per_epoch.max(1)), rate))
    };
    (0..=samples).filter_map(|n| at(step(n))).collect()
}

/// What happens beside sparsity and learning rate: epoch and words.
fn marks(schedule: &Schedule) -> Vec<(f64, &'static str)> {
    let word = |action: &Action| match action {
        Action::StartQuantization(_) => Some("quantised"),
        Action::FreezeObservers => Some("ranges frozen"),
        Action::FreezeBatchNorm => Some("norms frozen"),
        Action::FixMasks { .. } => Some("zeros kept"),
        Action::ReleaseMasks { .. } => Some("masks released"),
        _ => None,
    };
    let mut marks: Vec<(f64, &'static str)> =
        schedule.events.iter().filter_map(|event| Some((event.epoch, word(&event.action)?))).collect();
    marks.dedup();
    marks
}

fn chart(lines: &[Line], epochs: f64, highest: f64, marks: &[(f64, &str)]) -> String {
    let x = |epoch: f64| LEFT + epoch / epochs.max(f64::MIN_POSITIVE) * WIDTH;
    let y = |value: f64| 10.0 + (1.0 - value / highest) * HEIGHT;
    let (right, floor) = (LEFT + WIDTH, y(0.0));
    let mut svg = format!("<svg viewBox=\"0 0 {:.0} {:.0}\" role=\"img\">\n", right + 20.0, floor + BELOW);
    for part in 0..=4 {
        let value = highest * f64::from(part) / 4.0;
        let at = y(value);
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            short(value)
        );
    }
    let every = (epochs / 10.0).ceil().max(1.0);
    let mut epoch = 0.0;
    while epoch <= epochs {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{epoch}</text>",
            x(epoch),
            floor + 16.0
        );
        epoch += every;
    }
    for (number, (epoch, word)) in marks.iter().take(12).enumerate() {
        // Words of neighbours would lie on each other.
        let at = 20.0 + (number % 4) as f64 * 13.0;
        let _ = writeln!(
            svg,
            "<line class=\"mark\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"10\" y2=\"{floor:.1}\"/><text x=\"{1:.1}\" y=\"{at:.1}\">{2}</text>",
            x(*epoch),
            x(*epoch) + 4.0,
            escape_html(word)
        );
    }
    for line in lines {
        let points = line.points.iter().map(|&(epoch, value)| format!("{:.1},{:.1}", x(epoch), y(value)));
        let _ =
            writeln!(svg, "<polyline {} points=\"{}\"/>", line.style, points.collect::<Vec<_>>().join(" "));
    }
    svg + "</svg>\n"
}

/// A number with three digits that count.
fn short(value: f64) -> String {
    if value == 0.0 || (0.001..1000.0).contains(&value) {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.2e}")
    }
}

/// Text as it may stand in HTML and SVG, between tags and in attributes: names come from files of strangers.
pub fn escape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}
