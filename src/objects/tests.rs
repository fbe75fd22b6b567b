use super::*;

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn directory() -> (tempfile::TempDir, Objects) {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::open(&format!("file://{}", dir.path().display())).unwrap();
    (dir, objects)
}

#[test]
fn addresses_that_are_none_are_named() {
    for url in ["gs://bucket/x", "s3://", "s3:///prefix"] {
        let error = Objects::open(url).unwrap_err().to_string();
        assert!(error.contains(url) && error.contains("s3://BUCKET"), "{error}");
    }
    assert!(is_remote("s3://bucket/x") && !is_remote("file:///x") && !is_remote("models"));
}

#[test]
fn files_travel_whole_in_one_part_and_in_several() {
    let (dir, objects) = directory();
    let aside = tempfile::tempdir().unwrap();
    for length in [0, 5, PART_BYTES, 2 * PART_BYTES + 7] {
        let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let (from, to) = (aside.path().join("from"), aside.path().join("deep/er/to"));
        std::fs::write(&from, &bytes).unwrap();
        block(objects.put_file(&from, "a/b")).unwrap();
        block(objects.get_file("a/b", &to)).unwrap();
        assert!(std::fs::read(&to).unwrap() == bytes, "{length} bytes");
        assert_eq!(std::fs::read_dir(to.parent().unwrap()).unwrap().count(), 1, "nothing partial");
    }
    let list = block(objects.list("a")).unwrap();
    assert_eq!((list.len(), &*list[0].key), (1, "a/b"));
    assert_eq!(list[0].length_bytes as usize, 2 * PART_BYTES + 7);
    assert!(dir.path().join("a/b").is_file());
}

#[test]
fn what_is_there_is_not_created_again_and_what_is_gone_is_gone() {
    let (_dir, objects) = directory();
    assert!(block(objects.create("x/1.json", b"one".to_vec())).unwrap());
    assert!(!block(objects.create("x/1.json", b"two".to_vec())).unwrap());
    assert!(block(objects.create("x/y/2.json", b"two".to_vec())).unwrap());
    assert_eq!(block(objects.folders("x")).unwrap(), ["y"]);
    let read = block(objects.store().get(&Key::from("x/1.json"))).unwrap();
    assert_eq!(&*block(read.bytes()).unwrap(), b"one");
    for _ in 0..2 {
        block(objects.delete("x/1.json")).unwrap();
    }
    assert_eq!(block(objects.list("x")).unwrap().len(), 1);
}

#[test]
fn a_mirror_reads_what_is_new_and_forgets_what_is_gone() {
    let (dir, objects) = directory();
    let copies = tempfile::tempdir().unwrap();
    let put = |key: &str, text: &str| {
        let path = dir.path().join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let prefixes = ["events/dt=1".to_owned(), "items".to_owned(), "users".to_owned()];
    let mirror = || block(objects.mirror(&prefixes, copies.path())).unwrap();
    let copy = |key: &str| std::fs::read_to_string(copies.path().join(key)).ok();
    put("events/dt=1/a", "one");
    put("events/dt=2/a", "another day");
    put("items/a", "items");
    assert_eq!(mirror(), 2);
    assert_eq!((copy("events/dt=1/a").as_deref(), copy("events/dt=2/a")), (Some("one"), None));
    assert_eq!(mirror(), 0, "nothing is new");
    put("events/dt=1/a", "longer than one");
    put("events/dt=1/b", "two");
    std::fs::remove_file(dir.path().join("items/a")).unwrap();
    std::fs::remove_file(copies.path().join("events/dt=1/a")).unwrap();
    assert_eq!(mirror(), 2);
    assert_eq!(copy("events/dt=1/a").as_deref(), Some("longer than one"));
    assert_eq!((copy("events/dt=1/b").as_deref(), copy("items/a")), (Some("two"), None));
}
