//! A model's text with some lines changed: header and trees apart, sizes anew.

use super::Forest;
use super::text::Error;

/// A model's text in its parts.
pub(super) struct Parts<'a> {
    header: &'a str,
    /// From each `Tree=` to the next.
    trees: Vec<&'a str>,
    /// From `end of trees` on.
    tail: &'a str,
}

impl<'a> Parts<'a> {
    /// The parts of a text, and the model that it is.
    ///
    /// # Errors
    /// When the text is no model, or has no tree.
    pub fn of(text: &'a str) -> Result<(Self, Forest), Error> {
        let model = Forest::parse(text)?;
        let mark = "\nTree=";
        let first = text.find(mark).ok_or(Error::NoTrees)? + 1;
        let end = text.find("\nend of trees").ok_or(Error::NoTrees)? + 1;
        let mut trees = Vec::with_capacity(model.tree_count());
        let mut rest = &text[first..end];
        while !rest.is_empty() {
            let length = rest.find(mark).map_or(rest.len(), |at| at + 1);
            let (tree, more) = rest.split_at(length);
            trees.push(tree);
            rest = more;
        }
        Ok((Self { header: &text[..first], trees, tail: &text[end..] }, model))
    }

    /// The text with the values of some keys changed, by key and value; trees also by their number.
    ///
    /// # Errors
    /// When the new text is no model.
    pub fn with(
        &self,
        header: impl Fn(&str, &str) -> Option<String>,
        tree: impl Fn(usize, &str, &str) -> Option<String>,
    ) -> Result<String, Error> {
        let trees: Vec<String> = self
            .trees
            .iter()
            .enumerate()
            .map(|(number, text)| lines(text, |key, value| tree(number, key, value)))
            .collect();
        // LightGBM finds its trees by their lengths in bytes.
        let sizes: Vec<String> = trees.iter().map(|tree| tree.len().to_string()).collect();
        let header = lines(self.header, |key, value| match key {
            "tree_sizes" => Some(sizes.join(" ")),
            _ => header(key, value),
        });
        let text = [&header, &trees.concat(), self.tail].concat();
        Forest::parse(&text)?;
        Ok(text)
    }
}

/// The same model over the columns `names`, of which it may read some, in any order.
///
/// # Errors
/// When the text is no model, or reads a column that is not among the names: with those it lacks.
pub fn over(text: &str, names: &[String]) -> Result<String, Error> {
    let (parts, model) = Parts::of(text)?;
    let own = model.feature_names();
    let place = |name: &String| names.iter().position(|known| known == name);
    let unknown: Vec<String> = own.iter().filter(|name| place(name).is_none()).cloned().collect();
    if !unknown.is_empty() {
        return Err(Error::Columns { unknown: unknown.join(", "), known: names.len() });
    }
    let places: Vec<usize> = own.iter().filter_map(place).collect();
    let spread = |value: &str, absent: &str| {
        let mut all = vec![absent; names.len()];
        for (value, &place) in value.split_ascii_whitespace().zip(&places) {
            all[place] = value;
        }
        all.join(" ")
    };
    let header = |key: &str, value: &str| match key {
        "feature_names" => Some(names.join(" ")),
        "max_feature_idx" => Some((names.len() - 1).to_string()),
        "feature_infos" => Some(spread(value, "none")),
        "monotone_constraints" => Some(spread(value, "0")),
        _ => None,
    };
    parts.with(header, |_, key, value| {
        let moved = |at: &str| Some(places.get(at.parse::<usize>().ok()?)?.to_string());
        let all = || value.split_ascii_whitespace().map(moved).collect::<Option<Vec<_>>>();
        (key == "split_feature").then(all).flatten().map(|places| places.join(" "))
    })
}

/// The text with the values of some keys changed.
fn lines(text: &str, change: impl Fn(&str, &str) -> Option<String>) -> String {
    let changed = text.split('\n').map(|line| {
        let found = line.split_once('=').and_then(|(key, value)| Some((key, change(key, value)?)));
        found.map_or(line.to_owned(), |(key, value)| format!("{key}={value}"))
    });
    changed.collect::<Vec<_>>().join("\n")
}
