//! The evaluation as one HTML page for a person: self-contained, without scripts, plots as inline SVG.
//!
//! Invariant: the page says what `report.json` and `decision.json` say and computes nothing of its own;
//! every text from the data is escaped. Must not know where figures come from.

mod plot;

use std::collections::BTreeMap;
use std::fmt::Write;

use super::approve::Decision;
use super::evaluate::{Report, Slice};
use super::metrics::Estimate;
use crate::types::{DAY_MS, date_of};
use plot::Row;

/// Features in a plot.
const FEATURES_MAX: usize = 20;

/// The page of a report, and of what the gate said to it.
pub fn render(report: &Report, decision: Option<&Decision>) -> String {
    let [from, to] = report.window_ms;
    let last = date_of((to - DAY_MS).max(from));
    let days = if last == date_of(from) { last } else { format!("{} to {last}", date_of(from)) };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>Evaluation, {days}</title><style>{}</style></head><body><main>\
         <h1>Evaluation</h1><p class=\"lead\">Measured on {days}: {} users, {} requests, {} ranked \
         candidates. Bars and brackets are 95 % intervals over resampled users or requests.</p>",
        include_str!("style.css"),
        thousands(report.users),
        thousands(report.requests),
        thousands(report.rows),
    );
    page.push_str(&verdict(report, decision));
    page.push_str(&differences(report));
    page.push_str(&served(report));
    page.push_str(&ranking(report));
    page.push_str(&reliability(report));
    page.push_str(&slices(report));
    page.push_str(&weights(report));
    page.push_str(&recall(report));
    page.push_str("</main></body></html>\n");
    page
}

fn verdict(report: &Report, decision: Option<&Decision>) -> String {
    let mut out = String::new();
    for fault in &report.faults {
        let _ = write!(out, "<p class=\"bad box\">{}</p>", escape(fault));
    }
    let Some(decision) = decision else { return out };
    let (class, text) = match (decision.approved, &decision.overridden) {
        (true, _) => ("good", "Approved by the gate".to_owned()),
        (false, Some(word)) => {
            ("warn", format!("Refused by the gate; published by {}: {}", word.who, word.why))
        }
        (false, None) => ("bad", "Refused by the gate: nothing was published".to_owned()),
    };
    let _ = write!(out, "<p class=\"{class} box\">{}</p><table class=\"checks\">", escape(&text));
    for check in &decision.checks {
        let (class, mark) = if check.passed { ("good", "passed") } else { ("bad", "refused") };
        let (name, text) = (escape(&check.name), escape(&check.text));
        let _ =
            write!(out, "<tr><td class=\"{class}\">{mark}</td><td>{name}</td><td>{text}</td></tr>");
    }
    out.push_str("</table>");
    out
}

fn differences(report: &Report) -> String {
    if report.differences.is_empty() {
        return String::new();
    }
    let baseline = match &report.baseline {
        None => "Nothing serves yet, so there is no previous bundle to compare with.".to_owned(),
        Some(baseline) => {
            format!("<i>previous</i> is {}, which serves.", escape(&baseline.version))
        }
    };
    let kinds = [
        ("ranker - ", "ranker"),
        ("served - ", "whole path"),
        ("ranked - ", "whole path without the rules"),
        ("towers - ", "towers"),
    ];
    let mut out = format!(
        "<h2>New against old</h2><p>Right of the line the new models are better; a bar that crosses \
         it may be chance. {baseline}</p>"
    );
    for (prefix, title) in kinds {
        let rows: Vec<Row> = report
            .differences
            .iter()
            .filter_map(|(name, gain)| Some(Row::new(name.strip_prefix(prefix)?, *gain)))
            .collect();
        if !rows.is_empty() {
            let _ = write!(out, "<h3>{title}, less …</h3>{}", plot::differences(&rows));
        }
    }
    out
}

fn served(report: &Report) -> String {
    if report.served.is_empty() {
        return String::new();
    }
    let start = report.window_ms[0];
    let later = match &report.baseline {
        Some(baseline) if baseline.as_of_ms > start => {
            " The bundle that serves is of a later moment than the test begins, so it was not asked."
        }
        _ => "",
    };
    format!(
        "<h2>What users would have been shown</h2><p>Twenty items a user from the whole path of a \
         request: sources, ranking, rules. Coverage: share of the catalogue that half of the users \
         are shown together. Novelty: bits, one more for an item half as popular. Distance: mean of 1 − cosine between \
         the items of an answer.{later}</p>{}",
        table(&report.served, &["served", "previous", "popularity", "repeats"])
    )
}

fn ranking(report: &Report) -> String {
    if report.ranker.is_empty() {
        return String::new();
    }
    format!(
        "<h2>Ranking</h2>{}",
        table(&report.ranker, &["ranker", "previous", "popularity", "retrieval"])
    )
}

fn reliability(report: &Report) -> String {
    let found = &report.reliability;
    if found.parts.is_empty() {
        return "<h2>Calibration</h2><p>The ranker's scores are no probabilities.</p>".to_owned();
    }
    let figure = |name: &str, value: Option<Estimate>| {
        value.map_or(String::new(), |value| format!("<b>{name}</b> {}", interval(value)))
    };
    let mut rows = String::new();
    for part in &found.parts {
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{:.5}</td><td>{}</td></tr>",
            thousands(part.rows),
            part.predicted,
            interval(part.observed)
        );
    }
    format!(
        "<h2>Calibration</h2><p>{}<br>{}</p><div class=\"side\">{}<table><tr><th>rows</th>\
         <th>predicted</th><th>observed</th></tr>{rows}</table></div>",
        figure("expected calibration error", found.error),
        figure("predicted over observed", found.ratio),
        plot::reliability(&found.parts)
    )
}

fn slices(report: &Report) -> String {
    if report.slices.is_empty() {
        return String::new();
    }
    let mut out = "<h2>Parts of the traffic</h2>".to_owned();
    let figures = [
        ("ranker/auc", "AUC"),
        ("ranker/ndcg@10", "NDCG@10"),
        ("ranker/predicted over observed", "predicted over observed clicks"),
    ];
    out.push_str("<div class=\"side\">");
    for (key, title) in figures {
        let rows: Vec<Row> = report.slices.iter().filter_map(|slice| row(slice, key)).collect();
        if !rows.is_empty() {
            let whole = match key {
                "ranker/predicted over observed" => report.reliability.ratio,
                key => report.ranker.get(key).copied(),
            };
            let plot = plot::levels(&rows, whole.map(|whole| whole.mean));
            let _ = write!(out, "<div><h3>{title}</h3>{plot}</div>");
        }
    }
    out.push_str("</div><p>The dashed line is all rows.</p><table><tr><th>part</th>");
    out.push_str("<th>rows</th><th>successes</th><th>against previous, NDCG@10</th></tr>");
    for slice in &report.slices {
        let gain = slice.figures.get("ranker - previous/ndcg@10").copied();
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&slice.name),
            thousands(slice.rows),
            thousands(slice.successes),
            gain.map_or("–".to_owned(), signed)
        );
    }
    out.push_str("</table>");
    out
}

fn row<'a>(slice: &'a Slice, key: &str) -> Option<Row<'a>> {
    Some(Row::new(&slice.name, *slice.figures.get(key)?))
}

fn weights(report: &Report) -> String {
    let rows: Vec<plot::Bar> = report
        .weights
        .iter()
        .take(FEATURES_MAX)
        .map(|weight| plot::Bar {
            name: &weight.feature,
            value: weight.contribution.unwrap_or(weight.gain),
            direction: weight.direction,
            note: format!("gain {:.1} %", 100.0 * weight.gain),
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let alone: Vec<String> = report
        .alone
        .iter()
        .take(5)
        .map(|(name, auc)| format!("{} {auc:.3}", escape(name)))
        .collect();
    format!(
        "<h2>What the ranker looks at</h2><p>Mean absolute contribution to the score (SHAP). \
         <span class=\"up\">■</span> larger values raise the score, <span class=\"down\">■</span> \
         lower it, <span class=\"flat\">■</span> neither plainly.</p>{}<p>Most telling alone, by AUC: \
         {}.</p>",
        plot::bars(&rows),
        alone.join(", ")
    )
}

fn recall(report: &Report) -> String {
    if report.towers.is_empty() {
        return String::new();
    }
    let mut out = "<h2>Recall of the towers over all items</h2>".to_owned();
    for (scope, title) in [("new-to-user", "Items new to the user"), ("all", "All items")] {
        let middle = format!("/{scope}/");
        let of = |(name, value): (&String, &Estimate)| {
            name.contains(&middle).then(|| (name.replace(&middle, "/"), *value))
        };
        let figures: BTreeMap<String, Estimate> = report.towers.iter().filter_map(of).collect();
        let _ = write!(out, "<h3>{title}</h3>{}", table(&figures, &["towers", "previous"]));
    }
    out
}

/// Figures `system/metric` as a table with a row a system; `first` names the rows that lead.
fn table(figures: &BTreeMap<String, Estimate>, first: &[&str]) -> String {
    let mut systems: Vec<&str> = Vec::new();
    let mut metrics: Vec<&str> = Vec::new();
    for (system, metric) in figures.keys().filter_map(|name| name.rsplit_once('/')) {
        if !systems.contains(&system) {
            systems.push(system);
        }
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    let place = |name: &str| first.iter().position(|f| *f == name).unwrap_or(first.len());
    systems.sort_by_key(|name| (place(name), *name));
    // recall@20 before recall@100.
    let number = |name: &str| name.rsplit_once('@').and_then(|(_, k)| k.parse::<u32>().ok());
    metrics.sort_by_key(|name| (name.split('@').next().unwrap_or_default(), number(name)));
    let mut out = "<table><tr><th></th>".to_owned();
    metrics.iter().for_each(|metric| out.push_str(&format!("<th>{}</th>", escape(metric))));
    out.push_str("</tr>");
    for (row, system) in systems.iter().enumerate() {
        let class = if row == 0 { " class=\"ours\"" } else { "" };
        let _ = write!(out, "<tr{class}><td>{}</td>", escape(system));
        for metric in &metrics {
            let cell = figures.get(&format!("{system}/{metric}"));
            let cell = cell.map_or("–".to_owned(), |value| interval(*value));
            let _ = write!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>");
    }
    out.push_str("</table>");
    out
}

fn interval(Estimate { mean, lo, hi }: Estimate) -> String {
    format!("{} <small>[{}, {}]</small>", short(mean), short(lo), short(hi))
}

fn signed(Estimate { mean, lo, hi }: Estimate) -> String {
    format!("{mean:+.4} <small>[{lo:+.4}, {hi:+.4}]</small>")
}

/// Four digits of small numbers, fewer of large ones.
fn short(value: f64) -> String {
    if value.abs() >= 10.0 { format!("{value:.2}") } else { format!("{value:.4}") }
}

fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Text inside an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::approve::{Check, Override};
    use crate::offline::evaluate::Weight;

    fn estimate(mean: f64) -> Estimate {
        Estimate { mean, lo: mean - 0.1, hi: mean + 0.1 }
    }

    #[test]
    fn a_page_says_what_was_found_and_runs_nothing() {
        let mut report = Report { users: 12_345, window_ms: [0, DAY_MS], ..Report::default() };
        report.ranker.insert("ranker/auc".into(), estimate(0.75));
        report.ranker.insert("popularity/auc".into(), estimate(0.5));
        report.differences.insert("ranker - popularity/auc".into(), estimate(0.25));
        report.differences.insert("towers - popularity/all/recall@20".into(), estimate(-0.25));
        report.towers.insert("towers/all/recall@100".into(), estimate(0.3));
        report.towers.insert("towers/all/recall@20".into(), estimate(0.2));
        report.weights.push(Weight {
            feature: "a<script>".into(),
            gain: 0.5,
            contribution: None,
            direction: Some(-0.5),
        });
        let check = Check { name: "leak: alone".into(), passed: false, text: "x & y".into() };
        let word = Override { who: "ada".into(), why: "\"now\"".into(), time_ms: 0 };
        let decision = Decision { approved: false, checks: vec![check], overridden: Some(word) };
        let page = render(&report, Some(&decision));
        for found in
            ["12,345 users", "1970-01-01", "published by ada: &quot;now&quot;", "x &amp; y"]
        {
            assert!(page.contains(found), "{found}");
        }
        assert!(page.contains("a&lt;script&gt;") && !page.contains("<script"));
        assert!(page.contains("0.7500 <small>[0.6500, 0.8500]</small>"));
        let (at_20, at_100) = (page.find("<th>recall@20<").unwrap(), page.find("<th>recall@100<"));
        assert!(at_20 < at_100.unwrap());
        for outside in ["http", "url(", "src=", "@import"] {
            assert!(!page.contains(outside), "the page needs nothing else: {outside}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN"), "no coordinate is lost");
    }

    #[test]
    fn an_empty_report_and_figures_that_are_no_numbers_make_a_page() {
        let empty = render(&Report::default(), None);
        assert!(empty.ends_with("</html>\n") && !empty.contains("<svg"));
        let mut report = Report { faults: vec!["ranker.txt: <nan>".into()], ..Report::default() };
        let nan = Estimate { mean: f64::NAN, lo: f64::NAN, hi: f64::NAN };
        report.differences.insert("ranker - retrieval/auc".into(), nan);
        let page = render(&report, None);
        assert!(page.contains("ranker.txt: &lt;nan&gt;"));
    }
}
