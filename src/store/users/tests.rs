//! The embedded store, and flights; with Redis: `store::redis::tests`.

use std::cell::Cell;
use std::pin::Pin;

use super::super::fit::tests::fit;
use super::*;

/// The shipped configuration of the store.
pub fn config() -> Config {
    let all: toml::Table = include_str!("../../../config/default.toml").parse().unwrap();
    all["store"].clone().try_into().unwrap()
}

async fn embedded() -> Users {
    let mut config = config();
    config.embedded.file = PathBuf::new();
    Users::open(&config, Arc::new(Health::new())).await.unwrap()
}

fn user(id: &str) -> UserId {
    UserId(id.into())
}

#[tokio::test]
async fn an_embedding_is_of_one_history_one_user_and_one_bundle() {
    let (users, fit_a, fit_b) = (embedded().await, Arc::new(fit("a", 2)), Arc::new(fit("b", 2)));
    let vector: Arc<[f32]> = Arc::from([0.5, -0.5]);
    users.keep(&fit_a, &user("7"), Embedding { sequence: 11, vector: vector.clone() });
    let state = users.read(&fit_a, &user("7"), UserRow::default(), 0).await;
    assert_eq!(state.vector(11), Some(vector));
    assert_eq!(state.vector(12), None, "another history");
    assert_eq!(users.read(&fit_a, &user("8"), UserRow::default(), 0).await.embedding, None);
    assert_eq!(
        users.read(&fit_b, &user("7"), UserRow::default(), 0).await.embedding,
        None,
        "towers do not mix"
    );
    assert_eq!(state.degraded, None);
}

#[tokio::test]
async fn what_happened_is_read_by_the_next_request() {
    let (users, fit) = (embedded().await, Arc::new(fit("a", 2)));
    users.extend(&user("7"), List::History, [("x", 5), ("y", 6)]);
    users.extend(&user("7"), List::Shown, [("z", 7)]);
    let state = users.read(&fit, &user("7"), UserRow::default(), 0).await;
    let mut history: Vec<_> = state.history().collect();
    history.sort_unstable();
    assert_eq!(history, [("x", 5), ("y", 6)]);
    let ttl_ms = config().live.shown_ttl_s as i64 * 1000;
    assert_eq!(state.shown(7).collect::<Vec<_>>(), ["z"]);
    assert_eq!(state.shown(6 + ttl_ms).count(), 1);
    assert_eq!(state.shown(7 + ttl_ms).count(), 0, "it may be shown again");
}

fn entry() -> Option<Arc<Entry>> {
    let local = Local::new(&config().local);
    Some(local.put(&Arc::new(fit("a", 2)), "7", super::super::local::Stored::default()))
}

#[tokio::test]
async fn one_user_is_read_once_however_many_ask_and_others_do_not_wait() {
    let (flights, reads) = (Flights::default(), Cell::new(0));
    let (land, wait) = tokio::sync::oneshot::channel::<()>();
    let slow = async {
        reads.set(reads.get() + 1);
        wait.await.unwrap();
        entry()
    };
    let joins = async {
        let second = flights.join("7", async { unreachable!("the first reads for both") });
        let other = async {
            assert!(flights.join("8", async { entry() }).await.is_some(), "not behind user 7");
            land.send(()).unwrap();
        };
        tokio::join!(second, other).0
    };
    let (first, second) = tokio::join!(flights.join("7", slow), joins);
    assert!(Arc::ptr_eq(&first.unwrap(), &second.unwrap()));
    assert_eq!(reads.get(), 1);
    assert!(flights.lock().is_empty());
}

#[tokio::test]
async fn a_reader_that_is_dropped_leaves_its_read_to_the_next() {
    let flights = Flights::default();
    let mut first = Box::pin(flights.join("7", std::future::pending()));
    let mut second = Box::pin(flights.join("7", async { entry() }));
    assert!(waits(&mut first).await && waits(&mut second).await);
    drop(first);
    assert!(second.await.is_some());
    assert!(flights.lock().is_empty());
}

/// Whether a future is not done when it is polled once.
async fn waits<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending()))
        .await
}
