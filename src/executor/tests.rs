//! What callers rely on: refusals come before work, a panic stays inside its job.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use super::*;

fn start(threads: usize, queue_jobs_max: usize) -> Pool {
    let quality =
        QualityConfig { min: 1.0, wait_target_us: 1000, interval_ms: 10, standing_wait_ms: 20 };
    let config = Config {
        layout: Layout::Fused,
        threads: Threads::Exactly(threads),
        stage_threads: [Threads::Auto; 6],
        pin: false,
        queue_jobs_max,
        retry_after_max_ms: 1000,
        quality: quality.clone(),
    };
    Pool::start("test", &config, threads, &Arc::new(Quality::new(&quality))).unwrap()
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Occupies one thread until the returned sender is dropped or sends.
fn block(pool: &Pool) -> mpsc::SyncSender<()> {
    let (release, gate) = mpsc::sync_channel::<()>(1);
    let (begun_in, begun) = mpsc::sync_channel::<()>(1);
    let job = move || {
        begun_in.send(()).unwrap();
        let _ = gate.recv();
    };
    // The receiver must outlive the submission, or the job would count as given up.
    let waiting = pool.submit(far(), job).unwrap();
    std::mem::forget(waiting);
    begun.recv().unwrap();
    release
}

#[tokio::test]
async fn a_job_runs_on_a_thread_of_the_pool() {
    let pool = start(2, 8);
    let name = pool.run(far(), || std::thread::current().name().map(str::to_owned)).await;
    assert!(name.unwrap().unwrap().starts_with("test-"));
    assert_eq!(pool.threads(), 2);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_names_its_size() {
    let pool = start(1, 1);
    let release = block(&pool);
    let waiting = pool.submit(far(), || 7).unwrap();
    let refused = pool.run(far(), || 8).await.unwrap_err();
    assert!(matches!(refused, Rejected::QueueFull { queue_jobs_max: 1, retry_after_ms: 1.. }));
    drop(release);
    assert_eq!(waiting.await.unwrap().unwrap().value, 7, "the job that had a place is done");
}

#[tokio::test]
async fn a_job_whose_deadline_passed_in_the_queue_is_not_run() {
    let pool = start(1, 8);
    let release = block(&pool);
    let ran = Arc::new(AtomicUsize::new(0));
    let seen = ran.clone();
    let deadline = Instant::now() + Duration::from_millis(5);
    let late = pool.submit(deadline, move || seen.fetch_add(1, Ordering::SeqCst)).unwrap();
    while Instant::now() <= deadline {
        std::thread::yield_now();
    }
    drop(release);
    assert!(matches!(late.await.unwrap(), Err(Rejected::Deadline { .. })));
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    let past = Instant::now() - Duration::from_millis(1);
    assert!(matches!(pool.run(past, || ()).await, Err(Rejected::Deadline { .. })));
}

#[tokio::test]
async fn a_job_behind_too_much_work_is_refused_before_it_waits() {
    let pool = start(1, 8);
    pool.pace.record(Duration::from_secs(30));
    assert_eq!(pool.run(far(), || 1).await, Ok(1), "an empty queue takes any job");
    pool.pace.job_ns.store(Duration::from_secs(30).as_nanos() as u64, Ordering::Relaxed);
    let release = block(&pool);
    let first = pool.submit(far(), || 2).unwrap();
    let soon = Instant::now() + Duration::from_secs(20);
    let refused = pool.run(soon, || 3).await.unwrap_err();
    assert_eq!(refused, Rejected::Deadline { retry_after_ms: 1000 }, "clamped to the bound");
    drop(release);
    assert_eq!(first.await.unwrap().unwrap().value, 2);
}

#[tokio::test]
async fn a_job_whose_result_would_be_late_is_refused_unless_the_queue_is_empty() {
    let pool = start(1, 8);
    pool.pace.handed_back(Duration::from_secs(30));
    let release = block(&pool);
    let first = pool.submit(far(), || 1).unwrap();
    let soon = Instant::now() + Duration::from_secs(50);
    assert!(matches!(pool.run(soon, || 2).await, Err(Rejected::Deadline { .. })));
    let second = pool.submit(Instant::now() + Duration::from_secs(70), || 3).unwrap();
    // What was possible when it came is not any more when it begins.
    pool.pace.hand_back_ns.store(Duration::from_secs(40).as_nanos() as u64, Ordering::Relaxed);
    let third = pool.submit(Instant::now() + Duration::from_secs(100), || 4).unwrap();
    drop(release);
    assert_eq!(
        first.await.unwrap().map(|done| done.value),
        Err(Rejected::Deadline { retry_after_ms: 1 })
    );
    assert!(second.await.unwrap().is_err());
    assert_eq!(third.await.unwrap().unwrap().value, 4, "the last one may try");
    assert_eq!(pool.run(soon, || 5).await, Ok(5), "and so may one that finds nobody before it");
    assert!(
        pool.pace.hand_back_ns.load(Ordering::Relaxed) < Duration::from_secs(40).as_nanos() as u64
    );
}

#[tokio::test]
async fn a_panic_is_an_error_of_its_job_and_the_thread_lives_on() {
    let pool = start(1, 8);
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = pool.run(far(), || -> u8 { panic!("a bug") }).await;
    std::panic::set_hook(silent);
    assert_eq!(result, Err(Rejected::Panicked));
    assert_eq!(pool.run(far(), || 1).await, Ok(1));
}

#[tokio::test]
async fn a_job_that_nobody_waits_for_is_skipped() {
    let pool = start(1, 8);
    let release = block(&pool);
    let ran = Arc::new(AtomicUsize::new(0));
    let seen = ran.clone();
    drop(pool.submit(far(), move || seen.fetch_add(1, Ordering::SeqCst)).unwrap());
    drop(release);
    pool.run(far(), || ()).await.unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

#[test]
fn stopping_finishes_what_was_accepted() {
    let pool = start(1, 8);
    let release = block(&pool);
    let mut accepted = pool.submit(far(), || 5).unwrap();
    drop(release);
    drop(pool);
    assert_eq!(accepted.try_recv().unwrap().unwrap().value, 5);
}

#[test]
fn threads_are_auto_or_a_number() {
    #[derive(Debug, serde::Deserialize)]
    struct One {
        threads: Threads,
    }
    let parse = |text: &str| toml::from_str::<One>(&format!("threads = {text}"));
    assert_eq!(parse("\"auto\"").unwrap().threads, Threads::Auto);
    assert_eq!(parse("3").unwrap().threads, Threads::Exactly(3));
    assert_eq!(parse("\"3\"").unwrap().threads, Threads::Exactly(3));
    for wrong in ["0", "\"many\"", "5000"] {
        let error = parse(wrong).unwrap_err().to_string();
        assert!(error.contains("number of threads"), "{error}");
    }
}
