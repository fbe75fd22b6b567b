//! Fresh towers: which items get an id row, how numbers are standardised, random weights.

use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};

use super::super::Config;
use super::super::mlp::Mlp;
use super::super::model::{Shape, Standard, Table, Towers, signed_log};
use super::Data;

/// Fresh towers for the data: id rows by frequency, numbers standardised over all snapshots.
pub(super) fn towers(data: &Data, config: &Config, rng: &mut StdRng) -> Towers {
    let (id_row, id_rows) = assign_id_rows(data, config);
    let shape = Shape {
        dim: config.dim,
        id_dim: config.id_dim,
        code_dim_max: config.code_dim_max,
        hidden: config.hidden.clone(),
        history_max: config.history_max,
        pool_half_lives_events: config.pool_half_lives_events.clone(),
        separate_history_tables: config.separate_history_tables,
        items: data.items as u32,
        id_rows,
        item_codes: data.item_code_cardinalities.to_vec(),
        user_codes: data.user_code_cardinalities.to_vec(),
        item_dense: data.item_dense as u32,
        user_dense: data.user_dense as u32,
    };
    let code_rows = |(at, &code): (usize, &u32)| {
        let cardinality = shape.item_codes[at % shape.item_codes.len()];
        Towers::code_row(code, cardinality) as u16
    };
    let item_code_row = data.item_codes.iter().enumerate().map(code_rows).collect();
    let mut towers = random(shape, id_row, item_code_row, rng);
    let all_dense = data.snapshots.iter().flat_map(|values| values.iter());
    towers.item_standard = standard(all_dense, data.item_dense);
    towers.user_standard = standard(data.row_dense.iter(), data.user_dense);
    towers
}

/// Towers of a shape: He-initialised layers, small random rows, numbers taken as they are.
pub(crate) fn random(
    shape: Shape,
    id_row: Vec<u32>,
    item_code_row: Vec<u16>,
    rng: &mut StdRng,
) -> Towers {
    let layout = shape.layout();
    let mut normal = |deviation: f32| {
        let z: f32 = StandardNormal.sample(rng);
        z * deviation
    };
    let tables = layout
        .tables
        .iter()
        .map(|&(rows, dim)| Table {
            dim,
            values: (0..rows * dim).map(|_| normal(0.1)).collect::<Vec<f32>>().into(),
        })
        .collect();
    let mut network = |input: usize| {
        let sizes = shape.sizes(input);
        let mut params = Vec::with_capacity(Mlp::param_count(&sizes));
        for pair in sizes.windows(2) {
            let deviation = (2.0 / pair[0] as f32).sqrt();
            params.extend((0..pair[0] * pair[1]).map(|_| normal(deviation)));
            params.extend(std::iter::repeat_n(0.0, pair[1]));
        }
        Mlp { sizes, params: params.into() }
    };
    let (item, user) = (network(layout.item_input), network(layout.user_input));
    let identity = |width: u32| Standard {
        mean: vec![0.0; width as usize].into(),
        inverse: vec![1.0; width as usize].into(),
    };
    Towers {
        item,
        user,
        item_standard: identity(shape.item_dense),
        user_standard: identity(shape.user_dense),
        id_row: id_row.into(),
        item_code_row: item_code_row.into(),
        user_row: Vec::new().into(),
        user_vectors: Vec::new().into(),
        version: String::new(),
        tables,
        layout,
        shape,
    }
}

/// Items seen at least `id_min_count` times in the rows' events, the most frequent first, get a
/// row of their own as long as there are rows.
fn assign_id_rows(data: &Data, config: &Config) -> (Vec<u32>, u32) {
    let mut count = vec![0u32; data.items];
    for row in data.rows {
        for item in &data.event_items[row.begin as usize..row.end as usize] {
            count[item.row()] += 1;
        }
    }
    let mut order: Vec<u32> = (0..data.items as u32).collect();
    order.retain(|&item| count[item as usize] >= config.id_min_count.max(1));
    order.sort_by_key(|&item| (std::cmp::Reverse(count[item as usize]), item));
    order.truncate(config.id_rows_max.saturating_sub(1) as usize);
    let mut id_row = vec![0; data.items];
    for (row, &item) in order.iter().enumerate() {
        id_row[item as usize] = row as u32 + 1;
    }
    (id_row, order.len() as u32 + 1)
}

fn standard<'a>(values: impl Iterator<Item = &'a f32>, width: usize) -> Standard {
    let mut sums = vec![(0.0f64, 0.0f64, 0.0f64); width];
    for (at, &raw) in values.enumerate() {
        let value = f64::from(signed_log(raw));
        if value.is_finite() {
            let sum = &mut sums[at % width];
            *sum = (sum.0 + 1.0, sum.1 + value, sum.2 + value * value);
        }
    }
    let mean = |&(n, sum, _): &(f64, f64, f64)| if n > 0.0 { (sum / n) as f32 } else { 0.0 };
    let inverse = |&(n, sum, squares): &(f64, f64, f64)| {
        let variance = if n > 0.0 { squares / n - (sum / n) * (sum / n) } else { 0.0 };
        if variance > 1e-12 { (1.0 / variance.sqrt()) as f32 } else { 1.0 }
    };
    Standard {
        mean: sums.iter().map(mean).collect::<Vec<_>>().into(),
        inverse: sums.iter().map(inverse).collect::<Vec<_>>().into(),
    }
}
