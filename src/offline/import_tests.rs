//! Imports of small files: what is written, what is refused and how it is said.

use super::*;
use crate::offline::sql::tests::config as engine;
use crate::offline::tables::{i64_column, list_column, read_columns, string_column};

const SQL: &str = "
CREATE TABLE bought AS SELECT * FROM sales WHERE quantity > 0;
CREATE VIEW items AS
  SELECT id AS item_id, name AS title, kind AS category, price, colour,
    make_array('R' || CAST(kind AS VARCHAR)) AS regions FROM goods;
CREATE VIEW events AS
  SELECT customer_id AS user_id, id AS item_id, 'purchase' AS event,
    to_timestamp_seconds(sold) AS timestamp, paid AS value, tab AS context_tab, note FROM bought;
";

struct Case {
    dir: tempfile::TempDir,
    share_max: f64,
    sql: String,
}

impl Case {
    fn new(sales: &str, goods: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        fs::write(dir.path().join("in/sales.csv"), sales).unwrap();
        fs::write(dir.path().join("in/goods.csv"), goods).unwrap();
        Self { dir, share_max: 0.5, sql: SQL.to_owned() }
    }

    fn good() -> Self {
        Self::new(
            "Customer ID,id,sold,paid,tab,note,quantity\n\
             7.0,a,1512086400,1.5,x,-,1\n,b,1512086401,2,x,-,0\n8.0,b,1512000001,2.5,y,-,2\n",
            "id,name,kind,price,colour\na,Apple,1,1.5,red\nb,Beer,2,2.0,\n",
        )
    }

    fn run(&self) -> anyhow::Result<Report> {
        let sql = self.dir.path().join("import.sql");
        fs::write(&sql, &self.sql).unwrap();
        let options = Options {
            sql: Some(sql),
            inputs: vec![self.dir.path().join("in")],
            database: None,
            out: self.out(),
            parameters: Vec::new(),
        };
        let share = self.share_max;
        let config = Config {
            date_min: "2017-01-01".into(),
            date_max: "2017-12-31".into(),
            example_rows: 2,
            share_max: ShareMax {
                wrong_type: share,
                null_id: share,
                duplicate_id: share,
                date_out_of_range: share,
                unknown_item: share,
                negative_price: share,
            },
            postgres: crate::offline::postgres::Config {
                batch_rows: 2,
                connect_timeout_ms: 5000,
                answer_timeout_ms: 5000,
            },
        };
        import(&options, &engine(), &config, &|_| {})
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn read(&self, file: &str) -> RecordBatch {
        let (_, batches) = read_columns(&self.out().join(file), None).unwrap();
        assert_eq!(batches.len(), 1, "{file}");
        batches[0].clone()
    }
}

fn check<'a>(report: &'a Report, table: &str, check: &str) -> &'a Check {
    let table = report.tables.iter().find(|t| t.table == table).unwrap();
    table.checks.iter().find(|c| c.check == check).unwrap()
}

#[test]
fn files_become_canonical_tables() {
    let case = Case::good();
    let report = case.run().unwrap();
    assert!(report.passed, "{:?}", report.failure());
    let late = case.read("events/dt=2017-12-01/part-00000.parquet");
    assert_eq!(string_column(&late, "user_id").unwrap().value(0), "7", "not 7.0");
    assert_eq!(string_column(&late, "context_tab").unwrap().value(0), "x");
    assert_eq!(i64_column(&late, "timestamp").unwrap().value(0), 1_512_086_400_000_000);
    assert!(late.column_by_name("note").is_none());
    case.read("events/dt=2017-11-30/part-00000.parquet");
    let items = case.read("items/part-00000.parquet");
    assert_eq!(string_column(&items, "colour").unwrap().value(0), "red");
    let regions = list_column(&items, "regions").unwrap();
    assert_eq!(regions.value(1).as_string::<i32>().value(0), "R2");
    let events = report.tables.iter().find(|t| t.table == "events").unwrap();
    assert_eq!(events.unknown_columns, ["note"]);
    assert!(events.notes[0].contains("event_id"), "the derived id is said");
    assert!(!case.out().join("quarantine").exists());
    assert!(!case.out().join("users").exists());
}

#[test]
fn a_second_import_writes_the_same_bytes() {
    let case = Case::good();
    let file = case.out().join("events/dt=2017-12-01/part-00000.parquet");
    case.run().unwrap();
    let first = fs::read(&file).unwrap();
    fs::create_dir_all(case.out().join("events/dt=2016-01-01")).unwrap();
    case.run().unwrap();
    assert_eq!(first, fs::read(&file).unwrap());
    assert!(!case.out().join("events/dt=2016-01-01").exists(), "a table is replaced as a whole");
}

#[test]
fn bad_rows_are_counted_shown_and_quarantined() {
    let case = Case::new(
        "customer_id,id,sold,paid,tab,note,quantity\n\
         7,d,1512086400,1.5,x,-,1\n7,d,1512086400,1.5,x,-,1\n,d,1512086402,1,x,-,1\n\
         8,d,0,1,x,-,1\n8,a,1512086403,1,x,-,1\n8,ghost,1512086404,1,x,-,1\n",
        "id,name,kind,price,colour\na,Apple,1,cheap,red\nb,Beer,2,-2.0,\nc,Cola,2,2.0,\n\
         c,Cola,2,2.0,\nd,Dates,1,3.0,\n",
    );
    let report = case.run().unwrap();
    assert!(report.passed, "{:?}", report.failure());
    for (table, name, rows) in [
        ("items", "wrong_type", 1),
        ("items", "negative_price", 1),
        ("items", "duplicate_id", 1),
        ("events", "null_id", 1),
        ("events", "duplicate_id", 1),
        ("events", "date_out_of_range", 1),
        // `a` stands in the quarantine of items, so its event points nowhere too.
        ("events", "unknown_item", 2),
    ] {
        let check = check(&report, table, name);
        assert_eq!((check.rows, check.examples.len()), (rows, rows), "{table} {name}");
    }
    assert_eq!(case.read("quarantine/events.parquet").num_rows(), 5);
    assert_eq!(case.read("quarantine/items.parquet").num_rows(), 3);
    assert_eq!(case.read("events/dt=2017-12-01/part-00000.parquet").num_rows(), 1);
    assert_eq!(
        string_column(&case.read("items/part-00000.parquet"), "item_id").unwrap().value(0),
        "c"
    );
    assert!(report.lines().iter().any(|line| line.contains("cheap")), "examples are shown");
}

#[test]
fn a_passed_threshold_keeps_the_old_tables_and_names_the_check() {
    let mut case = Case::good();
    case.run().unwrap();
    case.share_max = 0.0;
    let goods = "id,name,kind,price,colour\na,Apple,1,-1.5,red\nb,Beer,2,2.0,\n";
    fs::write(case.dir.path().join("in/goods.csv"), goods).unwrap();
    let report = case.run().unwrap();
    assert!(!report.passed);
    let failure = report.failure().unwrap();
    assert!(failure.contains("negative_price") && failure.contains("1 of 2 rows"), "{failure}");
    assert!(failure.contains("share of 0.5") && failure.contains("allowed is 0"), "{failure}");
    assert_eq!(case.read("items/part-00000.parquet").num_rows(), 2);
    let bad = case.read("quarantine/items.parquet");
    assert_eq!(string_column(&bad, "reason").unwrap().value(0), "negative_price");
}

#[test]
fn errors_say_what_to_fix() {
    let mut case = Case::good();
    case.sql = SQL.replace("to_timestamp_seconds(sold) AS", "sold AS");
    let error = format!("{:#}", case.run().unwrap_err());
    assert!(error.contains("`timestamp` is Int64") && error.contains("to_timestamp_"), "{error}");
    case.sql = SQL.replace("customer_id AS user_id,", "");
    let error = format!("{:#}", case.run().unwrap_err());
    assert!(error.contains("missing: user_id"), "{error}");
    case.sql = "CREATE VIEW items AS SELECT id AS item_id FROM goods".into();
    let error = format!("{:#}", case.run().unwrap_err());
    assert!(error.contains("no table or view `events`"), "{error}");
    case.sql = "SELECT x FROM godos".into();
    let error = format!("{:#}", case.run().unwrap_err());
    assert!(error.contains("godos") && error.contains("tables: goods, sales"), "{error}");
}
