//! Plots as inline SVG: rows of intervals, bars, and a reliability diagram.

use std::fmt::Write;

use super::super::evaluate::reliability::Part;
use super::super::metrics::Estimate;
use super::escape;

/// Height of a row.
const ROW: f64 = 24.0;
/// Width of a digit or letter of the axis and the names, about.
const LETTER: f64 = 6.6;

/// A named figure.
pub struct Row<'a> {
    name: &'a str,
    value: Estimate,
}

impl<'a> Row<'a> {
    pub fn new(name: &'a str, value: Estimate) -> Self {
        Self { name, value }
    }

    fn is_finite(&self) -> bool {
        [self.value.mean, self.value.lo, self.value.hi].iter().all(|value| value.is_finite())
    }
}

/// A named bar.
pub struct Bar<'a> {
    pub name: &'a str,
    pub value: f64,
    /// From -1 to 1.
    pub direction: Option<f64>,
    pub note: String,
}

/// From values to places, with round marks.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Covers `low` to `high` with a margin, on the places `from` to `to`.
    fn over(low: f64, high: f64, from: f64, to: f64) -> Self {
        let margin = ((high - low) * 0.05).max(1e-9);
        Self { low: low - margin, high: high + margin, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        self.from + share * (self.to - self.from)
    }

    /// Four to eight round numbers within.
    fn marks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough);
        let step = step.unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|at| at as f64 * step).take_while(|mark| *mark <= self.high).collect()
    }
}

/// Differences with a line at zero; those that are surely above or below it are coloured.
pub fn differences(rows: &[Row]) -> String {
    intervals(rows, 860.0, Some(0.0), "zero", |value| match value {
        Estimate { lo, .. } if lo > 0.0 => "good",
        Estimate { hi, .. } if hi < 0.0 => "bad",
        _ => "",
    })
}

/// Figures of parts, with a line at the figure of the whole.
pub fn levels(rows: &[Row], whole: Option<f64>) -> String {
    intervals(rows, 460.0, whole.filter(|value| value.is_finite()), "whole", |_| "")
}

fn intervals(
    rows: &[Row],
    width: f64,
    line: Option<f64>,
    class: &str,
    colour: impl Fn(Estimate) -> &'static str,
) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.is_finite()).collect();
    if rows.is_empty() {
        return String::new();
    }
    let ends = rows.iter().flat_map(|row| [row.value.lo, row.value.hi]).chain(line);
    let (low, high) =
        ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * LETTER + 14.0).min(width * 0.5);
    let scale = Scale::over(low, high, left, width - 70.0);
    let bottom = rows.len() as f64 * ROW + 6.0;
    let mut out = open(width, bottom + 22.0);
    axis(&mut out, &scale, bottom);
    if let Some(line) = line {
        let x = scale.at(line);
        let _ = write!(
            out,
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>"
        );
    }
    for (at, row) in rows.iter().enumerate() {
        let y = at as f64 * ROW + 15.0;
        let Estimate { mean, lo, hi } = row.value;
        let (lo, hi, x) = (scale.at(lo), scale.at(hi), scale.at(mean));
        let _ = write!(
            out,
            "<g class=\"{}\"><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <line class=\"bar\" x1=\"{lo:.1}\" x2=\"{hi:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>\
             <text class=\"s\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            colour(row.value),
            left - 10.0,
            y + 4.0,
            escape(row.name),
            width - 60.0,
            y + 4.0,
            if class == "zero" { format!("{mean:+.4}") } else { format!("{mean:.4}") },
        );
    }
    out.push_str("</svg>");
    out
}

/// Bars from zero, coloured by direction.
pub fn bars(rows: &[Bar]) -> String {
    let width = 860.0;
    let most = rows.iter().map(|row| row.value).fold(0.0, f64::max).max(1e-12);
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * LETTER + 14.0).min(width * 0.5);
    let mut out = open(width, rows.len() as f64 * ROW + 4.0);
    for (at, row) in rows.iter().enumerate() {
        let y = at as f64 * ROW;
        let length = (row.value / most).max(0.0) * (width - left - 190.0);
        let class = match row.direction {
            Some(direction) if direction > 0.2 => "up",
            Some(direction) if direction < -0.2 => "down",
            _ => "flat",
        };
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{length:.1}\" \
             height=\"{:.1}\" rx=\"2\"/>\
             <text class=\"s\" x=\"{:.1}\" y=\"{:.1}\">{:.4}, {}</text>",
            left - 10.0,
            y + 16.0,
            escape(row.name),
            y + 4.0,
            ROW - 8.0,
            left + length + 8.0,
            y + 16.0,
            row.value,
            escape(&row.note),
        );
    }
    out.push_str("</svg>");
    out
}

/// Observed against predicted; on the dashed line promises are kept.
pub fn reliability(parts: &[Part]) -> String {
    let (width, height) = (440.0, 360.0);
    let ends = parts.iter().flat_map(|part| [part.predicted, part.observed.hi]);
    let high = ends.filter(|value| value.is_finite()).fold(1e-9, f64::max);
    let x = Scale::over(0.0, high, 56.0, width - 12.0);
    let y = Scale::over(0.0, high, height - 44.0, 12.0);
    let mut out = open(width, height);
    for mark in x.marks() {
        let (px, py) = (x.at(mark), y.at(mark));
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{px:.1}\" x2=\"{px:.1}\" y1=\"12\" y2=\"{:.1}\"/>\
             <line class=\"axis\" x1=\"56\" x2=\"{:.1}\" y1=\"{py:.1}\" y2=\"{py:.1}\"/>\
             <text class=\"s\" x=\"{px:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"s\" x=\"50\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            height - 44.0,
            width - 12.0,
            height - 28.0,
            label(mark, high),
            py + 4.0,
            label(mark, high),
        );
    }
    let _ = write!(
        out,
        "<line class=\"whole\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        x.at(0.0),
        y.at(0.0),
        x.at(high),
        y.at(high)
    );
    for part in parts {
        let Estimate { mean, lo, hi } = part.observed;
        let px = x.at(part.predicted);
        let _ = write!(
            out,
            "<line class=\"bar\" x1=\"{px:.1}\" x2=\"{px:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <circle class=\"dot\" cx=\"{px:.1}\" cy=\"{:.1}\" r=\"4\"/>",
            y.at(lo),
            y.at(hi),
            y.at(mean)
        );
    }
    let _ = write!(
        out,
        "<text class=\"s\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">predicted</text>\
         <text class=\"s\" x=\"14\" y=\"{:.1}\" text-anchor=\"middle\" \
         transform=\"rotate(-90 14 {:.1})\">observed</text></svg>",
        width / 2.0 + 22.0,
        height - 8.0,
        height / 2.0 - 16.0,
        height / 2.0 - 16.0
    );
    out
}

fn axis(out: &mut String, scale: &Scale, bottom: f64) {
    for mark in scale.marks() {
        let x = scale.at(mark);
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>\
             <text class=\"s\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            label(mark, scale.high - scale.low)
        );
    }
}

/// A mark with as many digits as tell it from its neighbours.
fn label(value: f64, span: f64) -> String {
    let digits = (2.0 - span.max(1e-12).log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    };
    if text == "-0" { "0".to_owned() } else { text }
}

fn open(width: f64, height: f64) -> String {
    format!("<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" role=\"img\">")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_within() {
        let scale = Scale::over(-0.013, 0.061, 0.0, 100.0);
        let marks: Vec<String> = scale.marks().iter().map(|m| label(*m, 0.074)).collect();
        assert_eq!(marks, ["0", "0.02", "0.04", "0.06"]);
        assert!((scale.at(-0.0167)).abs() < 0.1 && (scale.at(0.0647) - 100.0).abs() < 0.1);
        let point = Scale::over(0.5, 0.5, 0.0, 10.0);
        assert!(point.at(0.5).is_finite() && point.marks().len() < 10);
    }

    #[test]
    fn a_row_without_a_number_is_left_out() {
        let nan = Estimate { mean: f64::NAN, lo: 0.0, hi: 1.0 };
        assert_eq!(differences(&[Row::new("a", nan)]), "");
        let sure = Estimate { mean: 0.3, lo: 0.1, hi: 0.4 };
        let plot = differences(&[Row::new("a", nan), Row::new("b", sure)]);
        assert!(plot.contains("class=\"good\"") && !plot.contains("NaN"));
    }
}
