//! The page of `lacuna analyze --html`: one file, nothing loaded from elsewhere, no script.

use crate::analyze::Row;
use lacuna_recipe::escape_html;
use std::fmt::Write;

/// What a step spends its time on: name, colour.
const CLASSES: [(&str, &str); 5] = [
    ("sparse", "#2f9e6e"),
    ("dense int8", "#4472c4"),
    ("depthwise", "#8e6bbf"),
    ("dense f32", "#c77b30"),
    ("without weights", "#8a8f98"),
];

fn class(row: &Row) -> usize {
    let s = &row.step;
    match () {
        _ if s.slot_efficiency.is_some() => 0,
        _ if s.weights == 0 => 4,
        _ if s.kernel.starts_with("dwconv") => 2,
        _ if s.kernel.contains("_f32_") => 3,
        _ => 1,
    }
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8883; --soft: #8886; }
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0; }
dl { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: .8rem 0 1.2rem; }
dl div { display: flex; gap: .4rem; } dt { opacity: .65; } dd { margin: 0; }
.all { display: flex; height: 1.6rem; border-radius: 4px; overflow: hidden; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: .5rem 0 1.4rem; padding: 0; list-style: none; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; position: sticky; top: 0; background: Canvas; }
th, td { padding: .15rem .6rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.op { max-width: 16rem; overflow-wrap: anywhere; } td small, td.why { opacity: .7; font-size: .85em; }
td.time { width: 26%; } td.density { width: 11%; } td.number { white-space: nowrap; text-align: right; }
.bar { position: relative; height: .9rem; margin-top: .2rem; background: var(--line); border-radius: 2px; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 2px; }
.bar b { position: absolute; top: -2px; bottom: -2px; width: 2px; background: currentColor; }
";

/// The page: a title, facts about the run, and a line for each step.
pub fn page(title: &str, facts: &[(&str, String)], rows: &[Row]) -> String {
    let slowest =
        rows.iter().flat_map(|r| [r.ms(), r.step.estimated_ns / 1e6]).fold(f64::MIN_POSITIVE, f64::max);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\n<style>{STYLE}</style>\n<h1>{0}</h1>\n",
        escape_html(title)
    );
    let facts = facts
        .iter()
        .map(|(k, v)| format!("<div><dt>{}</dt><dd>{}</dd></div>", escape_html(k), escape_html(v)));
    // Writing to a string cannot fail.
    let _ = writeln!(html, "<dl>{}</dl>", facts.collect::<String>());
    html += &shares(rows);
    html += "<table>\n<tr><th>op<th>time (a mark: as estimated)<th>ms<th>share<th>weights that are not zero<th>slots in use<th>kernel<th>why</tr>\n";
    for row in rows {
        html += &line(row, slowest);
    }
    html + "</table>\n</html>\n"
}

/// One bar of all the time, by class, and what its colours mean.
fn shares(rows: &[Row]) -> String {
    let (mut bar, mut legend) = (String::new(), String::new());
    for (i, (name, colour)) in CLASSES.iter().enumerate() {
        let own = || rows.iter().filter(|r| class(r) == i);
        let (count, ms, share) = own().fold((0, 0.0, 0.0), |(n, ms, s), r| (n + 1, ms + r.ms(), s + r.share));
        if count > 0 {
            let _ = write!(bar, "<i style=\"width:{:.3}%;background:{colour}\"></i>", share * 100.0);
            let _ = write!(
                legend,
                "<li><i style=\"background:{colour}\"></i>{name}: {count} steps, {ms:.4} ms, {:.1} %</li>",
                share * 100.0
            );
        }
    }
    format!("<div class=\"all\">{bar}</div>\n<ul class=\"legend\">{legend}</ul>\n")
}

fn line(row: &Row, slowest: f64) -> String {
    let s = &row.step;
    let colour = CLASSES[class(row)].1;
    let percent = |ms: f64| ms / slowest * 100.0;
    let estimate = match s.measured_ns {
        Some(_) => format!("<b style=\"left:{:.2}%\"></b>", percent(s.estimated_ns / 1e6)),
        None => String::new(),
    };
    let density = match s.weights {
        0 => String::new(),
        all => format!(
            "<div class=\"bar\" title=\"{} of {all}\"><i style=\"width:{:.2}%;background:{colour}\"></i></div><small>{:.1} %</small>",
            all - row.zeros,
            s.density * 100.0,
            s.density * 100.0
        ),
    };
    let slots = s.slot_efficiency.map_or(String::new(), |e| format!("{:.0} %", e * 100.0));
    format!(
        "<tr><td class=\"op\">{} <small>{}</small><td class=\"time\"><div class=\"bar\"><i style=\"width:{:.2}%;background:{colour}\"></i>{estimate}</div>\
         <td class=\"number\">{:.4}<td class=\"number\">{:.1} %<td class=\"density\">{density}<td class=\"number\">{slots}<td>{}<td class=\"why\">{}</tr>\n",
        escape_html(&s.op),
        escape_html(s.kind),
        percent(row.ms()),
        row.ms(),
        row.share * 100.0,
        escape_html(s.kernel),
        escape_html(&s.reason)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_engine::StepProfile;

    #[test]
    fn names_cannot_leave_their_cell_and_nothing_is_loaded() {
        let step = StepProfile {
            op: "<script src=\"http://x\">&'".into(),
            kind: "QConv",
            kernel: "conv_i8_16x16_avx512vbmi_lanegather",
            weights: 100,
            nonzeros: 10,
            density: 0.1,
            slot_efficiency: Some(0.5),
            estimated_ns: 2e6,
            measured_ns: Some(1e6),
            reason: "density 0.100".into(),
        };
        let html = page("a <b>", &[("batch", "1".into())], &[Row { step, zeros: 90, share: 1.0 }]);
        assert!(!html.contains("<script") && !html.contains("<b>"));
        assert!(html.contains("&lt;script src=&quot;http://x&quot;&gt;&amp;&#39;"));
        assert!(!html.contains("url(") && !html.contains("<link") && !html.contains(" src=\""));
        assert!(html.contains("sparse: 1 steps, 1.0000 ms, 100.0 %"));
        // Measured is half of the estimate, which is the longest bar.
        assert!(html.contains("width:50.00%") && html.contains("left:100.00%"));
    }
}
