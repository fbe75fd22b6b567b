//! What a request costs against its rows, the trees, and the share of splits that can be pruned.

use std::fmt::Write as _;

use shortlist::forest::Forest;

use crate::Ready;
use crate::models::{self, CONSTANTS, Model, SPECS};
use crate::record::{Figures, Table, figures, turn};

const ROWS: [usize; 9] = [1, 10, 32, 100, 250, 500, 1000, 3000, 10_000];
const TREES: [usize; 6] = [10, 50, 100, 250, 500, 1000];
const CONSTANT_FEATURES: [usize; 9] = [0, 15, 30, 45, 60, 75, 90, 105, 120];

/// A line of the plot: pairs of what varies and milliseconds.
type Points = Vec<(f64, f64)>;

/// Measures the three curves and draws them.
pub fn run(table: &mut Table, plot: &str) {
    let base = models::load(&SPECS[1]);
    let forest = Forest::parse(&base.text).expect("LightGBM's own text");
    let (mut pruned, mut whole) = (Points::new(), Points::new());
    for rows in ROWS {
        let model = base.with_rows(rows);
        for (name, constants, points) in
            [("pruned", CONSTANTS, &mut pruned), ("whole", 0, &mut whole)]
        {
            let found = measure(&model, &forest, constants);
            note(table, "cost/rows", name, &format!("300x63 num rows={rows}"), &found);
            points.push((rows as f64, found.p50_ms));
        }
    }
    let mut panels = vec![Panel::new("rows (300x63)", true, pruned, whole)];

    let large = models::load(&SPECS[4]);
    let (mut pruned, mut whole) = (Points::new(), Points::new());
    for trees in TREES {
        let text = models::first_trees(&large.text, trees);
        let forest = Forest::parse(&text).expect("the first trees of a model");
        for (name, constants, points) in
            [("pruned", CONSTANTS, &mut pruned), ("whole", 0, &mut whole)]
        {
            let found = measure(&large, &forest, constants);
            note(table, "cost/trees", name, &format!("{trees}x63 num rows=500"), &found);
            points.push((trees as f64, found.p50_ms));
        }
    }
    panels.push(Panel::new("trees of 63 leaves (500 rows)", true, pruned, whole));

    let mut pruned = Points::new();
    for constants in CONSTANT_FEATURES {
        let share = models::share_below(&base.text, constants);
        let found = measure(&base, &forest, constants);
        let setting = format!("300x63 num constant_share={share:.3}");
        note(table, "cost/share", "pruned", &setting, &found);
        pruned.push((share, found.p50_ms));
    }
    panels.push(Panel::new("constant share of splits (300x63, 500 rows)", false, pruned, vec![]));
    std::fs::write(plot, draw(&panels)).expect("the record's folder");
}

fn note(table: &mut Table, work: &str, name: &str, setting: &str, found: &Figures) {
    let system = format!("shortlist:{name}");
    table.row(work, &system, setting, "p50_ms", found.p50_ms);
    table.row(work, &system, setting, "min_ms", found.min_ms);
}

/// Specialising and scoring with the first `constants` features constant.
fn measure(model: &Model, forest: &Forest, constants: usize) -> Figures {
    let mut ready = Ready::plain(model, forest, constants);
    let mut times = Vec::new();
    for _ in 0..5 {
        turn(&mut times, || {
            if constants > 0 {
                ready.specialise();
            }
            ready.score();
        });
    }
    figures(times)
}

/// One curve, or two, over one axis.
struct Panel {
    title: &'static str,
    /// Both axes are logarithmic.
    log: bool,
    lines: [(&'static str, &'static str, Points); 2],
}

impl Panel {
    fn new(title: &'static str, log: bool, pruned: Points, whole: Points) -> Self {
        Self { title, log, lines: [("pruned", "#0b6", pruned), ("whole", "#c50", whole)] }
    }

    /// Draws into a square of `SIDE` whose left edge is at `left`.
    fn draw(&self, left: f64, out: &mut String) {
        const SIDE: f64 = 260.0;
        let scale = |value: f64| if self.log { value.log10() } else { value };
        let all = || self.lines.iter().flat_map(|(_, _, points)| points);
        let range = |of: fn(&(f64, f64)) -> f64| {
            let values = || all().map(|point| scale(of(point)));
            let low = if self.log { values().fold(f64::INFINITY, f64::min) } else { 0.0 };
            (low, values().fold(f64::NEG_INFINITY, f64::max))
        };
        let (across, up) = (range(|point| point.0), range(|point| point.1));
        let place =
            |(low, high): (f64, f64), value: f64| SIDE * (scale(value) - low) / (high - low);
        let x = |value: f64| left + place(across, value);
        let y = |value: f64| 40.0 + SIDE - place(up, value);
        let mut add = |text: String| out.push_str(&text);
        add(format!("<text x='{left}' y='20' font-weight='bold'>{}</text>\n", self.title));
        add(format!(
            "<rect x='{left}' y='40' width='{SIDE}' height='{SIDE}' fill='none' stroke='#999'/>\n"
        ));
        let mut labelled: Vec<f64> = Vec::new();
        for &(at, _) in all() {
            if labelled.iter().any(|&other| (x(other) - x(at)).abs() < 34.0) {
                continue;
            }
            labelled.push(at);
            let text = if at < 1.0 && at > 0.0 { format!("{at:.2}") } else { format!("{at}") };
            add(format!("<text x='{:.0}' y='316' text-anchor='middle'>{text}</text>\n", x(at)));
        }
        for (name, colour, points) in &self.lines {
            let Some(&(last_x, last_y)) = points.last() else { continue };
            let mut path = String::new();
            for &(at, ms) in points {
                write!(path, "{:.1},{:.1} ", x(at), y(ms)).expect("a string grows");
                add(format!(
                    "<circle cx='{:.1}' cy='{:.1}' r='3' fill='{colour}'/>\n",
                    x(at),
                    y(ms)
                ));
            }
            add(format!("<polyline points='{path}' fill='none' stroke='{colour}'/>\n"));
            add(format!(
                "<text x='{:.0}' y='{:.0}' text-anchor='end' fill='{colour}'>{name} {last_y:.3} ms</text>\n",
                x(last_x) - 6.0,
                y(last_y) + 14.0
            ));
            let (first_x, first_y) = points[0];
            add(format!(
                "<text x='{:.0}' y='{:.0}' fill='{colour}'>{first_y:.3}</text>\n",
                x(first_x) + 6.0,
                y(first_y) - 6.0
            ));
        }
    }
}

fn draw(panels: &[Panel]) -> String {
    let mut out = "<svg xmlns='http://www.w3.org/2000/svg' width='960' height='350' \
        font-family='sans-serif' font-size='11'>\n<rect width='960' height='350' fill='#fff'/>\n"
        .to_owned();
    for (at, panel) in panels.iter().enumerate() {
        panel.draw(30.0 + 310.0 * at as f64, &mut out);
    }
    out += "<text x='30' y='340'>p50 of one request, milliseconds; specialising included where \
        something is constant; the first two panels are logarithmic</text>\n</svg>\n";
    out
}
