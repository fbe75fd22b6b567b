//! What the answers of some days led to: click-through rate, conversion and revenue, by variant, bundle,
//! device, region and day, with intervals.
//!
//! `sql/report.sql` joins what users did to the answers that showed it and sums over users; here the sums
//! become ratios. Users are the unit that is drawn, so a ratio's variance is that of sums over users (delta
//! method; Deng, Lu and Litz, WSDM 2017), and intervals are of 95 %.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;

use super::engine::{Engine, Job};
use super::frame::Frame;
use super::raw;
use super::sql::ParquetWriter;
use crate::events;
use crate::experiments::off_policy::Estimate;
use crate::types::date_of;

/// Two-sided 95 % of a normal distribution.
const Z: f64 = 1.96;
/// Columns of the request log that say where an answer belongs.
const COLUMNS: [&str; 6] =
    ["request_id", "user_id", "device", "region", "variant", "bundle_version"];

/// Which kinds of events count as what.
#[derive(Clone, Copy, Debug)]
pub struct Kinds<'a> {
    pub shown: &'a str,
    pub clicks: &'a [String],
    pub orders: &'a [String],
}

/// One value of one dimension.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub dimension: String,
    pub value: String,
    pub users: u64,
    pub answers: u64,
    pub impressions: u64,
    pub clicks: u64,
    pub orders: u64,
    pub revenue: f64,
    /// Items of answers with events that name no answer of these days.
    pub unjoined: u64,
    /// Clicks an impression.
    pub ctr: Estimate,
    /// Orders a click.
    pub conversion: Estimate,
    /// Revenue a thousand impressions.
    pub ecpm: Estimate,
    /// Revenue an answer.
    pub revenue_per_answer: Estimate,
}

/// Reads the two logs below `data` for `days` (midnights, epoch milliseconds); `scratch` is a directory
/// for what only this run needs.
///
/// # Errors
/// When there are no events, or the logs cannot be read.
pub fn report(
    data: &Path,
    days: &[i64],
    kinds: Kinds,
    engine: &Engine,
    scratch: &Path,
) -> Result<Vec<Row>> {
    let [events, requests] = ["events", "requests"].map(|name| scratch.join(name));
    for dir in [&events, &requests] {
        std::fs::create_dir_all(dir)?;
    }
    raw::events(data, days, &events, &scratch.join("unfit"), engine.sql.partitions)?;
    gather_requests(data, days, &requests)?;
    let text = |kind: &str| format!("'{}'", kind.replace('\'', "''"));
    let list = |kinds: &[String]| -> String {
        let texts: Vec<String> = kinds.iter().map(|kind| text(kind)).collect();
        if texts.is_empty() { "''".to_owned() } else { texts.join(", ") }
    };
    let (shown, clicks, orders) = (text(kinds.shown), list(kinds.clicks), list(kinds.orders));
    let (mut job, out) = (Job::default(), scratch.join("report.parquet"));
    job.input("raw_events", events);
    job.input("requests", requests);
    let parameters = [("shown", &*shown), ("clicks", &*clicks), ("orders", &*orders)];
    job.step("report", out.clone(), &parameters)?;
    engine.run(&job, &scratch.join("engine"), &mut |_| {})?;
    rows(&Frame::open(&out)?)
}

/// The request log without what decided the answers, and the day of each.
fn gather_requests(data: &Path, days: &[i64], out: &Path) -> Result<()> {
    let mut fields: Vec<Field> =
        COLUMNS.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
    fields.push(Field::new("day", DataType::Int64, true));
    let schema = Arc::new(Schema::new(fields));
    let mut writer = ParquetWriter::create(&out.join("requests.parquet"), schema.clone())?;
    for &day in days {
        for path in events::request_files(data, &date_of(day))? {
            let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path)?)?;
            let mask = ProjectionMask::columns(builder.parquet_schema(), COLUMNS);
            for batch in builder.with_projection(mask).build()? {
                let batch = batch?;
                let column = |name: &&str| -> Result<ArrayRef> {
                    let found = batch.column_by_name(name);
                    ensure!(found.is_some(), "{}: no column `{name}`", path.display());
                    Ok(cast(found.expect("just checked"), &DataType::Utf8)?)
                };
                let mut columns: Vec<ArrayRef> =
                    COLUMNS.iter().map(column).collect::<Result<_>>()?;
                columns.push(Arc::new(Int64Array::from(vec![day; batch.num_rows()])));
                writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
            }
        }
    }
    writer.finish()?;
    Ok(())
}

fn rows(frame: &Frame) -> Result<Vec<Row>> {
    let (dimensions, values) = (frame.ids("dimension")?, frame.ids("value")?);
    let mut rows = Vec::with_capacity(dimensions.len());
    let column = |name: &str| frame.f64(name);
    let [users, unjoined] = [column("users")?, column("unjoined")?];
    let (answers, impressions) = (column("answers")?, column("impressions")?);
    let (clicks, orders, revenue) = (column("clicks")?, column("orders")?, column("revenue")?);
    let (aa, ii) = (column("answers_answers")?, column("impressions_impressions")?);
    let (cc, ci) = (column("clicks_clicks")?, column("clicks_impressions")?);
    let (oo, oc) = (column("orders_orders")?, column("orders_clicks")?);
    let (rr, ri) = (column("revenue_revenue")?, column("revenue_impressions")?);
    let ra = column("revenue_answers")?;
    for (at, (dimension, value)) in dimensions.into_iter().zip(values).enumerate() {
        let users = users[at];
        let of = |top: f64, bottom: f64, tt: f64, tb: f64, bb: f64| {
            ratio(users, [top, bottom], [tt, tb, bb])
        };
        let ecpm = of(revenue[at], impressions[at], rr[at], ri[at], ii[at]);
        let day = value.parse().ok().filter(|_| dimension == "day");
        rows.push(Row {
            value: day.map_or(value, date_of),
            dimension,
            users: users as u64,
            answers: answers[at] as u64,
            impressions: impressions[at] as u64,
            clicks: clicks[at] as u64,
            orders: orders[at] as u64,
            revenue: revenue[at],
            unjoined: unjoined[at] as u64,
            ctr: of(clicks[at], impressions[at], cc[at], ci[at], ii[at]),
            conversion: of(orders[at], clicks[at], oo[at], oc[at], cc[at]),
            ecpm: Estimate {
                value: 1000.0 * ecpm.value,
                low: 1000.0 * ecpm.low,
                high: 1000.0 * ecpm.high,
            },
            revenue_per_answer: of(revenue[at], answers[at], rr[at], ra[at], aa[at]),
        });
    }
    Ok(rows)
}

/// `top / bottom` of sums over users, from their second moments: top by top, top by bottom, bottom by
/// bottom. NaN where there is nothing to divide by.
fn ratio(users: f64, [top, bottom]: [f64; 2], [tt, tb, bb]: [f64; 3]) -> Estimate {
    if bottom <= 0.0 {
        return Estimate { value: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    let value = top / bottom;
    let squares = (tt - 2.0 * value * tb + value * value * bb).max(0.0);
    let error = Z * (squares * users / (users - 1.0).max(1.0)).sqrt() / bottom;
    Estimate { value, low: (value - error).max(0.0), high: value + error }
}

/// For a person.
pub fn lines(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<28} {:>9} {:>9} {:>11} {:>9} {:>22} {:>22} {:>24}",
        "", "users", "answers", "impressions", "clicks", "CTR %", "orders a click %", "eCPM"
    )];
    let percent = |estimate: &Estimate| show(estimate, 100.0);
    for row in rows {
        let name = format!("{} {}", row.dimension, row.value);
        lines.push(format!(
            "{name:<28} {:>9} {:>9} {:>11} {:>9} {:>22} {:>22} {:>24}",
            row.users,
            row.answers,
            row.impressions,
            row.clicks,
            percent(&row.ctr),
            percent(&row.conversion),
            show(&row.ecpm, 1.0),
        ));
    }
    if let Some(all) = rows.iter().find(|row| row.dimension == "all" && row.unjoined > 0) {
        lines.push(format!(
            "{} items have events that name no answer of these days: their variant and bundle are what the \
             events say",
            all.unjoined
        ));
    }
    lines
}

fn show(estimate: &Estimate, scale: f64) -> String {
    if estimate.value.is_nan() {
        return "-".to_owned();
    }
    let Estimate { value, low, high } = estimate;
    format!("{:.2} [{:.2}, {:.2}]", scale * value, scale * low, scale * high)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;

    #[test]
    fn the_interval_of_a_ratio_holds_the_truth_though_users_differ() {
        let mut held = 0;
        for seed in 0..200 {
            let mut random = Pcg64Mcg::seed_from_u64(seed);
            let (users, mut sums, mut moments) = (300, [0.0; 2], [0.0; 3]);
            // Half look ten times and click with 5 %, half look twice and click with 20 %.
            for user in 0..users {
                let (looks, rate) = if user % 2 == 0 { (10, 0.05) } else { (2, 0.2) };
                let clicks = (0..looks).filter(|_| random.random_bool(rate)).count() as f64;
                let looks = f64::from(looks);
                sums = [sums[0] + clicks, sums[1] + looks];
                let [tt, tb, bb] = moments;
                moments = [tt + clicks * clicks, tb + clicks * looks, bb + looks * looks];
            }
            let estimate = ratio(f64::from(users), sums, moments);
            held += usize::from((estimate.low..estimate.high).contains(&0.075));
        }
        // 190 of 200 but for chance: 4.9 standard deviations to 175.
        assert!((175..=200).contains(&held), "{held} of 200");
        assert!(ratio(5.0, [0.0, 0.0], [0.0; 3]).value.is_nan());
    }
}
