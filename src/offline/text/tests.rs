use super::*;

fn config(dir: &Path, model: &Path) -> Config {
    Config {
        model: model.into(),
        columns: vec!["title".into(), "category".into()],
        components: 2,
        tokens_max: 16,
        batch: 2,
        cache_dir: dir.join("cache"),
    }
}

/// Id, title and category.
type Row = (&'static str, Option<&'static str>, Option<&'static str>);

fn items(dir: &Path, rows: &[Row]) {
    let text = |of: &dyn Fn(&Row) -> Option<String>| -> ArrayRef {
        std::sync::Arc::new(StringArray::from(rows.iter().map(of).collect::<Vec<_>>()))
    };
    let columns = [
        ("item_id", text(&|row| Some(row.0.to_owned()))),
        ("title", text(&|row| row.1.map(str::to_owned))),
        ("category", text(&|row| row.2.map(str::to_owned))),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    );
    let batch = batch.unwrap();
    write_parquet(&dir.join("items.parquet"), batch.schema(), &[batch]).unwrap();
}

#[test]
fn without_a_model_nothing_stands_for_the_texts_and_an_old_table_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), Path::new(""));
    std::fs::write(path(dir.path()), "of yesterday").unwrap();
    assert_eq!(run(&config, dir.path(), &|_, _| {}).unwrap(), None);
    assert!(!path(dir.path()).exists());
    let inputs = ["items.price".to_owned(), "texts.*".to_owned()];
    assert_eq!(config.expand(&inputs), ["items.price"]);
    config.model = "somewhere".into();
    assert_eq!(config.expand(&inputs), ["items.price", "texts.v00", "texts.v01"]);
}

#[cfg(feature = "text")]
mod with_a_model {
    use std::collections::HashMap;

    use candle_core::{Device, Tensor};
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;
    use crate::offline::text::bert::Bert;

    const WORDS: [&str; 9] =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "wine", "glass", "garden", "hose"];
    const DIM: usize = 8;

    /// A small model with random weights, in the layout of the real ones.
    fn model(dir: &Path, prefix: &str) {
        let config = serde_json::json!({
            "hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": WORDS.len(), "max_position_embeddings": 16,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "model_type": "bert",
        });
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let vocab: HashMap<&str, usize> = WORDS.iter().enumerate().map(|(n, w)| (*w, n)).collect();
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                    "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
            "decoder": null,
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab},
        });
        std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let mut random = Pcg64Mcg::seed_from_u64(3);
        let mut tensors = HashMap::new();
        let mut add = |name: &str, shape: &[usize]| {
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|_| random.random::<f32>() - 0.5).collect();
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            tensors.insert(format!("{prefix}{name}"), tensor);
        };
        add("embeddings.word_embeddings.weight", &[WORDS.len(), DIM]);
        add("embeddings.position_embeddings.weight", &[16, DIM]);
        add("embeddings.token_type_embeddings.weight", &[2, DIM]);
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..2 {
            let at = |name: &str| format!("encoder.layer.{layer}.{name}");
            for (name, shape) in [
                ("attention.self.query", [DIM, DIM]),
                ("attention.self.key", [DIM, DIM]),
                ("attention.self.value", [DIM, DIM]),
                ("attention.output.dense", [DIM, DIM]),
                ("intermediate.dense", [16, DIM]),
                ("output.dense", [DIM, 16]),
            ] {
                add(&at(&format!("{name}.weight")), &shape);
                add(&at(&format!("{name}.bias")), &shape[..1]);
            }
            norms.extend([at("attention.output.LayerNorm"), at("output.LayerNorm")]);
        }
        for norm in norms {
            add(&format!("{norm}.weight"), &[DIM]);
            add(&format!("{norm}.bias"), &[DIM]);
        }
        candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    }

    #[test]
    fn a_text_has_one_vector_whatever_stands_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), "");
        let bert = Bert::open(dir.path(), 16).unwrap();
        let together = bert.encode(&["wine", "red wine glass garden hose", "Wine"]).unwrap();
        for (text, found) in ["wine", "red wine glass garden hose", "Wine"]
            .into_iter()
            .zip(together.chunks_exact(DIM))
        {
            let alone = bert.encode(&[text]).unwrap();
            let length: f32 = alone.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5);
            for (a, b) in alone.iter().zip(found) {
                assert!((a - b).abs() < 1e-5, "`{text}`: {alone:?}, {found:?}");
            }
        }
        assert_eq!(together[..DIM], together[2 * DIM..], "the tokenizer's own rules hold");
        let cut = Bert::open(dir.path(), 4).unwrap();
        let short = cut.encode(&["red wine glass garden", "red wine"]).unwrap();
        assert_eq!(short[..DIM], short[DIM..], "two words and the marks");
        assert!(bert.encode(&[]).unwrap().is_empty());
    }

    #[test]
    fn exports_with_a_prefix_are_the_same_model_and_another_kind_is_named() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        model(one.path(), "");
        model(two.path(), "bert.");
        let encode = |dir: &Path| Bert::open(dir, 16).unwrap().encode(&["red hose"]).unwrap();
        assert_eq!(encode(one.path()), encode(two.path()));
        let path = one.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap().replace("\"bert\"", "\"gpt2\"");
        std::fs::write(&path, text).unwrap();
        let error = Bert::open(one.path(), 16).err().unwrap().to_string();
        assert!(error.contains("gpt2"), "{error}");
        std::fs::remove_file(one.path().join("tokenizer.json")).unwrap();
    }

    #[test]
    fn each_distinct_text_is_read_once_and_columns_keep_their_meaning() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), "");
        let config = config(dir.path(), dir.path());
        items(
            dir.path(),
            &[
                ("a", Some("red"), Some("wine")),
                ("b", Some("garden"), Some("hose")),
                ("c", Some(" red "), Some("wine")),
                ("d", None, None),
                ("e", Some("glass"), None),
            ],
        );
        let summary = run(&config, dir.path(), &|_, _| {}).unwrap().unwrap();
        assert_eq!(summary, Summary { items: 5, texts: 3, read: 3 });
        let read = || {
            let frame = Frame::open(&path(dir.path())).unwrap();
            let (ids, column) = (frame.ids("item_id").unwrap(), frame.f32("v00").unwrap());
            ids.into_iter().zip(column).collect::<HashMap<_, _>>()
        };
        let first = read();
        assert_eq!(first["a"], first["c"]);
        assert!(first["a"] != first["b"] && first["d"].is_nan());
        // A new item is read, the others are known, and stand where they stood.
        items(dir.path(), &[("f", Some("wine"), Some("glass")), ("b", Some("garden hose"), None)]);
        let summary = run(&config, dir.path(), &|_, _| {}).unwrap().unwrap();
        assert_eq!(summary, Summary { items: 2, texts: 2, read: 1 });
        assert_eq!(read()["b"], first["b"]);
    }

    /// Where the demo keeps the real model; its numbers are those that its makers publish.
    #[test]
    fn the_real_model_says_what_its_makers_say() {
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/shortlist"));
        let cache = std::env::var_os("SHORTLIST_CACHE").map(PathBuf::from).or(home);
        let folder = cache.unwrap_or_default().join("demo/text-model");
        if !folder.is_dir() {
            eprintln!("skipped: no model in {}; `make demo` fetches it", folder.display());
            return;
        }
        let bert = Bert::open(&folder, 256).unwrap();
        let texts =
            ["This is an example sentence", "red wine glass", "glass for wine", "garden hose"];
        let vectors = bert.encode(&texts).unwrap();
        let known = [0.067_656_91, 0.063_495_93, 0.048_713_15, 0.079_304_96, 0.037_448_08];
        for (found, known) in vectors.iter().zip(known) {
            assert!((found - known).abs() < 2e-4, "{:?}", &vectors[..5]);
        }
        let close = |a: usize, b: usize| -> f32 {
            let vector = |at: usize| &vectors[at * bert.dim()..][..bert.dim()];
            vector(a).iter().zip(vector(b)).map(|(x, y)| x * y).sum()
        };
        assert!(close(1, 2) > close(1, 3) + 0.4, "{} {}", close(1, 2), close(1, 3));
    }
}
