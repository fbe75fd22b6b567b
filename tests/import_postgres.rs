//! `shortlist import --postgres` against a real server, which the test starts and stops.

#![cfg(all(feature = "etl", unix))]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

const PASSWORD: &str = "pass word@1";
/// Rows of the large table: three times what is asked for at once.
const MANY: usize = 30_500;

const WORLD: &str = r#"
CREATE TYPE mood AS ENUM ('calm', 'wild');
CREATE SCHEMA shop;
CREATE TABLE shop.items (
  item_id bigint, title text, category varchar(20), price numeric(10, 2), created_at timestamptz,
  in_stock boolean, regions text[], labels varchar(10)[], image_url text,
  pieces int, size smallint, weight real, code uuid, mood mood, sold_on date, seen_at timestamp,
  whole numeric(12, 0), open_numeric numeric, sizes int[]);
INSERT INTO shop.items VALUES
  (1, 'Tea, "green"', 'Drinks', 2.50, '2026-01-31 12:00:00.25+02', true, '{R1,"R 2"}', '{}',
   NULL, 7, -3, 1.5, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'wild', '2026-02-01',
   '2026-02-01 00:00:01', 123456789012, 0.125, '{1,NULL,3}'),
  (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
   NULL, NULL, NULL),
  (3, 'Debt', 'Odd', -1.00, '2026-01-31 12:00:00+00', false, '{}', '{x}', NULL, 1, 1, 1, NULL,
   'calm', NULL, NULL, 1, 1, '{}');
-- The schema is named after the user, so tables without one are in it too.
CREATE TABLE profiles AS
  SELECT 'u' || n AS user_id, 'R' || n % 5 AS region, n AS age FROM generate_series(1, 30500) n;
INSERT INTO profiles VALUES (NULL, 'R1', 3), ('u7', 'R1', 4);
CREATE TABLE far AS SELECT 'x' AS user_id, timestamptz 'infinity' AS since;
CREATE TABLE huge AS SELECT 'x' AS user_id, 12345678901234567890::numeric AS number;
"#;

/// A server on a port of its own, gone with the value.
struct Server {
    _dir: tempfile::TempDir,
    data: PathBuf,
    bin: PathBuf,
    port: u16,
}

impl Server {
    /// `None` where PostgreSQL is not installed.
    fn start() -> Option<Self> {
        let bin = find_bin()?;
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, PASSWORD).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { data, bin, port, _dir: dir };
        let pwfile = format!("--pwfile={}", secret.display());
        let args = ["--username=shop", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"];
        let made = server.tool("initdb").args(args).arg(&pwfile).output().unwrap();
        assert!(made.status.success(), "initdb: {}", text(&made));
        let hba = "host all md5_user 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 scram-sha-256\n";
        let write = format!("cat > {}/pg_hba.conf", server.data.display());
        server.shell(&format!("printf '{}' | {write}", hba.replace('\n', "\\n")));
        let options = format!("-h 127.0.0.1 -p {port} -k {} -c fsync=off", server.data.display());
        let log = server.data.join("log").display().to_string();
        let started =
            server.tool("pg_ctl").args(["-w", "-l", &log, "-o", &options, "start"]).status();
        assert!(started.unwrap().success(), "pg_ctl start");
        server.psql(WORLD);
        Some(server)
    }

    /// The server refuses to be root: then its tools run as a user that the system has for this.
    fn tool(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.arg("-D").arg(&self.data).current_dir("/");
        command
    }

    fn shell(&self, script: &str) {
        let mut command = Command::new(if is_root() { "runuser" } else { "sh" });
        if is_root() {
            command.args(["-u", "postgres", "--", "sh"]);
        }
        assert!(command.args(["-c", script]).current_dir("/").status().unwrap().success());
    }

    fn psql(&self, sql: &str) {
        let output = Command::new(self.bin.join("psql"))
            .args(["-h", "127.0.0.1", "-U", "shop", "-d", "postgres", "-v", "ON_ERROR_STOP=1"])
            .args(["-p", &self.port.to_string(), "-q", "-c", sql])
            .env("PGPASSWORD", PASSWORD)
            .output()
            .unwrap();
        assert!(output.status.success(), "psql: {}", text(&output));
    }

    fn url(&self) -> String {
        format!("postgres://shop:pass%20word%401@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.tool("pg_ctl").args(["-m", "immediate", "stop"]).output();
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8_lossy(&id.stdout).trim() == "0"
}

/// Where `initdb` is: Debian keeps it off the PATH.
fn find_bin() -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path().join("bin"))
        .collect();
    places.sort();
    places.reverse();
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path));
    places.into_iter().find(|place| place.join("initdb").is_file())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn import(out: &Path, url: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shortlist"))
        .args(["import", "--postgres", url, "--out"])
        .arg(out)
        .args(more)
        .env("SHORTLIST__IMPORT__SHARE_MAX__NEGATIVE_PRICE", "0.5")
        .env_remove("PGPASSWORD")
        .output()
        .unwrap()
}

fn read(path: &Path) -> RecordBatch {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let schema = builder.schema().clone();
    let batches: Vec<RecordBatch> = builder.build().unwrap().map(Result::unwrap).collect();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

#[test]
fn profiles_and_items_come_from_a_database() {
    let Some(server) = Server::start() else {
        println!("skipped: no initdb; install PostgreSQL (Debian: postgresql)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("data");
    // Events of another source stay.
    fs::create_dir_all(out.join("events/dt=2026-01-01")).unwrap();

    let url = server.url();
    let output = import(
        &out,
        &url,
        &["--read", "items=shop.items", "--read", "users=SELECT * FROM profiles"],
    );
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("pass"), "the password is shown: {}", text(&output));
    assert!(out.join("events/dt=2026-01-01").exists());
    items_are_whole(&out);

    let users = read(&out.join("users/part-00000.parquet"));
    assert_eq!(users.num_rows(), MANY);
    let bad = read(&out.join("quarantine/users.parquet"));
    let reasons = bad.column_by_name("reason").unwrap().as_string::<i32>();
    let mut reasons: Vec<&str> = reasons.iter().flatten().collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["duplicate_id", "null_id"]);

    by_a_sql_file(&server, dir.path());
    errors_say_what_to_fix(&server, dir.path());
    an_older_way_to_say_the_password(&server, dir.path());
}

fn items_are_whole(out: &Path) {
    let items = read(&out.join("items/part-00000.parquet"));
    let column = |name: &str| items.column_by_name(name).unwrap();
    let texts = |name: &str| column(name).as_string::<i32>().clone();
    assert_eq!(texts("item_id").iter().flatten().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(texts("title").value(0), "Tea, \"green\"");
    assert_eq!(texts("mood").value(0), "wild");
    assert_eq!(texts("code").value(0), "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
    let floats = |name: &str| column(name).as_primitive::<Float64Type>().value(0);
    assert_eq!((floats("price"), floats("weight"), floats("open_numeric")), (2.5, 1.5, 0.125));
    let ints = |name: &str| column(name).as_primitive::<Int64Type>().value(0);
    assert_eq!((ints("pieces"), ints("size"), ints("whole")), (7, -3, 123_456_789_012));
    assert!(column("in_stock").as_boolean().value(0));
    let times = |name: &str| column(name).as_primitive::<TimestampMicrosecondType>().value(0);
    assert_eq!(times("created_at"), 1_769_853_600_250_000);
    assert_eq!(times("sold_on"), 1_769_904_000_000_000);
    assert_eq!(times("seen_at"), 1_769_904_001_000_000);
    let list = |name: &str| -> Vec<Option<String>> {
        let row = column(name).as_list::<i32>().value(0);
        row.as_string::<i32>().iter().map(|x| x.map(str::to_owned)).collect()
    };
    assert_eq!(list("regions"), [Some("R1".into()), Some("R 2".into())]);
    assert_eq!(list("sizes"), [Some("1".into()), None, Some("3".into())]);
    for field in items.schema().fields().iter().filter(|f| f.name() != "item_id") {
        assert!(column(field.name()).is_null(1), "{} of a row of NULLs", field.name());
    }
    let bad = read(&out.join("quarantine/items.parquet"));
    assert_eq!(bad.column_by_name("reason").unwrap().as_string::<i32>().value(0), "negative_price");
}

fn by_a_sql_file(server: &Server, dir: &Path) {
    let sql = dir.join("mine.sql");
    fs::write(&sql, "CREATE VIEW users AS SELECT user_id, region FROM people WHERE age < 11")
        .unwrap();
    let out = dir.join("by-sql");
    let sql = sql.display().to_string();
    let output = import(&out, &server.url(), &["--sql", &sql, "--read", "people=profiles"]);
    assert!(!output.status.success(), "one of eleven rows has no id");
    assert!(text(&output).contains("null_id"), "{}", text(&output));
    let query = "people=SELECT * FROM profiles WHERE user_id <> 'u7'";
    let output = import(&out, &server.url(), &["--sql", &sql, "--read", query]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(read(&out.join("users/part-00000.parquet")).num_rows(), 9);
}

fn errors_say_what_to_fix(server: &Server, dir: &Path) {
    let url = server.url();
    let wrong = url.replace("pass%20word%401", "guess");
    let nowhere = url.replace(&server.port.to_string(), "1");
    let other = format!("{}/elsewhere", url.rsplit_once('/').unwrap().0);
    for (url, read, expected) in [
        (wrong.as_str(), "users=profiles", ["28P01", "check user and password"]),
        (&nowhere, "users=profiles", ["cannot reach PostgreSQL at 127.0.0.1:1", "refused"]),
        (&other, "users=profiles", ["3D000", "elsewhere"]),
        (&url, "users=absent", ["relation \"absent\" does not exist", "check the table's name"]),
        (&url, "users=SELECT nothing FROM profiles", ["42703", "nothing"]),
        (&url, "users=far", ["column `since`: `infinity`", "cast"]),
        (&url, "users=huge", ["column `number`: `12345678901234567890`", "more digits"]),
        (&url, "users=SELECT user_id, '\\x00'::bytea AS raw FROM far", ["`raw` is bytea", "hex"]),
        (&url, "people=profiles", ["`people` is no canonical table", "--sql"]),
        (&url, "users=SELECT pg_sleep(0) FROM (DELETE FROM far) x", ["42601", "syntax error"]),
        (&url, "users=DELETE FROM far RETURNING user_id", ["25006", "only reading"]),
    ] {
        let began = Instant::now();
        let output = import(&dir.join("never"), url, &["--read", read]);
        let text = text(&output);
        assert!(!output.status.success(), "{read}");
        for expected in expected {
            assert!(text.contains(expected), "{read}: `{expected}` is not in:\n{text}");
        }
        assert!(!text.contains("guess") && !text.contains("pass%20"), "{read}: {text}");
        assert!(began.elapsed() < Duration::from_secs(20), "{read}");
    }
    assert!(!dir.join("never/users").exists());
}

fn an_older_way_to_say_the_password(server: &Server, dir: &Path) {
    server.psql(
        "SET password_encryption = 'md5'; CREATE ROLE md5_user LOGIN PASSWORD 'old'; \
         GRANT USAGE ON SCHEMA shop TO md5_user; GRANT SELECT ON shop.profiles TO md5_user",
    );
    let url = format!("postgres://md5_user:old@127.0.0.1:{}/postgres", server.port);
    let output = import(&dir.join("md5"), &url, &["--read", "users=shop.profiles"]);
    assert!(output.status.success(), "{}", text(&output));
    let output = import(&dir.join("denied"), &url, &["--read", "items=shop.items"]);
    assert!(text(&output).contains("permission denied"), "{}", text(&output));
}
