//! What callers rely on: refusals come before work, a panic stays inside its job.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use super::*;

fn config(threads: usize, queue_jobs_max: usize) -> Config {
    Config {
        threads: Threads::Exactly(threads),
        pin: false,
        queue_jobs_max,
        retry_after_max_ms: 1000,
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Occupies one thread until the returned sender is dropped or sends.
fn block(executor: &Executor<Vec<u8>>) -> mpsc::SyncSender<()> {
    let (release, gate) = mpsc::sync_channel::<()>(1);
    let (begun_in, begun) = mpsc::sync_channel::<()>(1);
    let job = move |_: &mut Vec<u8>| {
        begun_in.send(()).unwrap();
        let _ = gate.recv();
    };
    // The receiver must outlive the submission, or the job would count as given up.
    let waiting = executor.submit(far(), job).unwrap();
    std::mem::forget(waiting);
    begun.recv().unwrap();
    release
}

#[tokio::test]
async fn a_job_runs_with_the_scratch_of_its_thread() {
    let executor = Executor::start("test", &config(2, 8), |_| vec![0u8; 16]).unwrap();
    let sizes = executor.run(far(), |scratch| scratch.len()).await;
    assert_eq!(sizes, Ok(16));
    assert_eq!(executor.threads(), 2);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_names_its_size() {
    let executor = Executor::start("test", &config(1, 1), |_| Vec::new()).unwrap();
    let release = block(&executor);
    let waiting = executor.submit(far(), |_| 7).unwrap();
    let refused = executor.run(far(), |_| 8).await.unwrap_err();
    assert!(matches!(refused, Rejected::QueueFull { queue_jobs_max: 1, retry_after_ms: 1.. }));
    drop(release);
    assert_eq!(waiting.await.unwrap(), Ok(7), "the job that had a place is done");
}

#[tokio::test]
async fn a_job_whose_deadline_passed_in_the_queue_is_not_run() {
    let executor = Executor::start("test", &config(1, 8), |_| Vec::new()).unwrap();
    let release = block(&executor);
    let ran = Arc::new(AtomicUsize::new(0));
    let seen = ran.clone();
    let deadline = Instant::now() + Duration::from_millis(5);
    let late = executor.submit(deadline, move |_| seen.fetch_add(1, Ordering::SeqCst)).unwrap();
    while Instant::now() <= deadline {
        std::thread::yield_now();
    }
    drop(release);
    assert!(matches!(late.await.unwrap(), Err(Rejected::Deadline { .. })));
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    let past = Instant::now() - Duration::from_millis(1);
    assert!(matches!(executor.run(past, |_| ()).await, Err(Rejected::Deadline { .. })));
}

#[tokio::test]
async fn a_job_behind_too_much_work_is_refused_before_it_waits() {
    let executor = Executor::start("test", &config(1, 8), |_| Vec::new()).unwrap();
    executor.pace.record(Duration::from_secs(30));
    assert_eq!(executor.run(far(), |_| 1).await, Ok(1), "an empty queue takes any job");
    executor.pace.job_ns.store(Duration::from_secs(30).as_nanos() as u64, Ordering::Relaxed);
    let release = block(&executor);
    let first = executor.submit(far(), |_| 2).unwrap();
    let soon = Instant::now() + Duration::from_secs(20);
    let refused = executor.run(soon, |_| 3).await.unwrap_err();
    assert_eq!(refused, Rejected::Deadline { retry_after_ms: 1000 }, "clamped to the bound");
    drop(release);
    assert_eq!(first.await.unwrap(), Ok(2));
}

#[tokio::test]
async fn a_panic_is_an_error_of_its_job_and_the_thread_lives_on() {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = made.clone();
    let scratch = move |_| vec![counter.fetch_add(1, Ordering::SeqCst) as u8];
    let executor = Executor::start("test", &config(1, 8), scratch).unwrap();
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = executor.run(far(), |_| -> u8 { panic!("a bug") }).await;
    std::panic::set_hook(silent);
    assert_eq!(result, Err(Rejected::Panicked));
    assert_eq!(executor.run(far(), |scratch| scratch[0]).await, Ok(1), "with a fresh scratch");
}

#[tokio::test]
async fn a_job_that_nobody_waits_for_is_skipped() {
    let executor = Executor::start("test", &config(1, 8), |_| Vec::new()).unwrap();
    let release = block(&executor);
    let ran = Arc::new(AtomicUsize::new(0));
    let seen = ran.clone();
    drop(executor.submit(far(), move |_| seen.fetch_add(1, Ordering::SeqCst)).unwrap());
    drop(release);
    executor.run(far(), |_| ()).await.unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

#[test]
fn stopping_finishes_what_was_accepted() {
    let executor = Executor::start("test", &config(1, 8), |_| Vec::new()).unwrap();
    let release = block(&executor);
    let mut accepted = executor.submit(far(), |_| 5).unwrap();
    drop(release);
    drop(executor);
    assert_eq!(accepted.try_recv().unwrap(), Ok(5));
}

#[test]
fn threads_are_auto_or_a_number() {
    let parse = |text: &str| {
        toml::from_str::<Config>(&format!(
            "threads = {text}\npin = true\nqueue_jobs_max = 4\nretry_after_max_ms = 5"
        ))
    };
    assert_eq!(parse("\"auto\"").unwrap().threads, Threads::Auto);
    assert_eq!(parse("3").unwrap().threads, Threads::Exactly(3));
    assert_eq!(parse("\"3\"").unwrap().threads, Threads::Exactly(3));
    for wrong in ["0", "\"many\"", "5000"] {
        let error = parse(wrong).unwrap_err().to_string();
        assert!(error.contains("number of threads"), "{error}");
    }
}
