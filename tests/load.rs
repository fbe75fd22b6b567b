//! The load generator of `bench/load` against a server of a few lines: what its figures are worth.

#[path = "../bench/load/client.rs"]
mod client;
#[path = "../bench/load/load.rs"]
mod load;
#[path = "../bench/load/plan.rs"]
mod plan;
#[path = "../bench/load/report.rs"]
mod report;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use serde_json::Value;

/// Answers the nth request of all connections as the function says, until its connection ends.
fn server(answer: impl Fn(u64, &Value) -> Option<(u16, String)> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/recommendations", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    let seen = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, seen) = (answer.clone(), seen.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Some(body) = request(&mut reader) {
                    match answer(seen.fetch_add(1, Ordering::Relaxed), &body) {
                        Some((status, body)) => reply(reader.get_mut(), status, &body),
                        None => return,
                    }
                }
            });
        }
    });
    url
}

fn request(reader: &mut BufReader<TcpStream>) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            return serde_json::from_slice(&body).ok();
        }
    }
}

fn reply(stream: &mut TcpStream, status: u16, body: &str) {
    let length = body.len();
    let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
    // The head and the body in two writes, so that they arrive apart at times.
    let (head, rest) = text.split_at(20);
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(rest.as_bytes());
}

fn run(url: &str, more: &[&str]) -> report::Report {
    let args = ["load", "--url", url, "--users", "50", "--seconds", "1", "--warmup-seconds", "0"];
    load::run(&load::Args::parse_from(args.iter().chain(more))).unwrap()
}

fn plain() -> Option<(u16, String)> {
    Some((200, r#"{"items":[{"item_id":"i1"}],"degraded":[]}"#.to_owned()))
}

#[test]
fn a_stall_is_charged_to_every_request_that_came_meanwhile() {
    // One connection, and the 20th answer takes 300 ms: at 100 requests a second about 30 requests
    // wait behind it. A closed loop would have seen one slow answer.
    let url = server(|nth, _| {
        if nth == 20 {
            std::thread::sleep(Duration::from_millis(300));
        }
        plain()
    });
    let report = run(&url, &["--rate", "100", "--arrivals", "constant", "--connections", "1"]);
    let slow = report.samples.iter().filter(|sample| sample.latency_us > 50_000).count();
    assert!(slow >= 20, "{slow} of {} answers were charged", report.samples.len());
    assert_eq!(report.connections, 1);
}

#[test]
fn answers_are_counted_by_what_they_say() {
    let url = server(|nth, _| match nth % 5 {
        0 => Some((429, "{}".to_owned())),
        1 => Some((200, r#"{"items":[],"degraded":["ranking","user_store_down"]}"#.to_owned())),
        2 => Some((
            200,
            r#"{"items":[{"item_id":"a"},{"item_id":"b"}],"degraded":["ranking"]}"#.into(),
        )),
        3 => plain(),
        _ => Some((503, "{}".to_owned())),
    });
    let report = run(&url, &["--rate", "200", "--num-items", "2", "--connections", "1"]);
    let sent = report.samples.len() as u64;
    let (json, fifth) = (report.json(), sent / 5);
    let near = |value: &Value| value.as_u64().is_some_and(|n| n.abs_diff(fifth) <= 1);
    assert!(near(&json["status"]["429"]) && near(&json["status"]["503"]), "{json}");
    assert!(near(&json["degraded"]["user_store_down"]), "{json}");
    assert!(json["degraded"]["ranking"].as_u64().unwrap().abs_diff(2 * fifth) <= 2, "{json}");
    assert!(json["short_answers"].as_u64().unwrap().abs_diff(2 * fifth) <= 2, "{json}");
    assert_eq!(json["errors"], 0, "{json}");
    let rows: Vec<_> = report.timeline().lines().map(str::to_owned).collect();
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert!(rows[1].starts_with(&format!("0,{sent},")), "{rows:?}");
}

#[test]
fn a_connection_that_the_server_closed_while_idle_is_opened_again() {
    // Every connection serves one request, then ends while nothing is asked of it; the request
    // that finds it closed counts once.
    let url = server(|nth, _| if nth % 2 == 0 { plain() } else { None });
    let report = run(&url, &["--rate", "50", "--connections", "1", "--arrivals", "constant"]);
    let json = report.json();
    assert_eq!(
        (&json["errors"], json["reopened"].as_u64() > Some(10)),
        (&0.into(), true),
        "{json}"
    );
}

#[test]
fn no_server_is_an_error_each_and_not_the_end() {
    let url = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    };
    let report = run(&url, &["--rate", "100"]);
    let json = report.json();
    assert_eq!(json["errors"], report.samples.len() as u64, "{json}");
    assert_eq!(json["good_rps"], 0.0, "{json}");
}

#[test]
fn a_plan_follows_from_its_seed_and_keeps_its_rate_and_shares() {
    let callers = plan::Callers {
        users: 1000,
        absent_share: 0.25,
        regions: vec!["north".into(), "east".into()],
        devices: vec![],
        num_items: 20,
    };
    let make = |seed| plan::Plan::new(500.0, plan::Arrivals::Poisson, seed, callers.clone());
    let first: Vec<_> = make(1).take(10_000).collect();
    assert!(first.iter().cloned().eq(make(1).take(10_000)));
    assert!(!first.iter().cloned().eq(make(2).take(10_000)));
    let seconds = first.last().unwrap().0.as_secs_f64();
    assert!((19.0..21.0).contains(&seconds), "10,000 requests at 500/s in {seconds} s");
    let absent = first.iter().filter(|(_, body)| {
        let body: Value = serde_json::from_str(body).unwrap();
        assert!(body.get("device").is_none() && body["region"].is_string(), "{body}");
        body["user_id"].as_str().unwrap() > "u0001000"
    });
    let absent = absent.count();
    assert!((2300..2700).contains(&absent), "{absent} of 10,000 by absent users");
}
