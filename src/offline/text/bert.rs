//! A BERT encoder (Devlin et al. 2019) whose outputs are averaged over the tokens, as sentence
//! transformers do (Reimers and Gurevych 2019).

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear};
use serde::Deserialize;
use tokenizers::{PaddingParams, Tokenizer, TruncationParams};

/// Why a model cannot be read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}; give a folder with config.json, tokenizer.json and model.safetensors", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Config { path: PathBuf, source: serde_json::Error },
    #[error("{}: {source}", path.display())]
    Tokenizer { path: PathBuf, source: tokenizers::Error },
    #[error("the model's {what} is `{found}`; only {known} is supported")]
    Kind { what: &'static str, found: String, known: &'static str },
    #[error("the texts cannot be split into tokens: {0}")]
    Tokens(tokenizers::Error),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What `config.json` says that matters here.
#[derive(Debug, Deserialize)]
struct Shape {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
    hidden_act: String,
    model_type: String,
}

/// A model that was read.
pub struct Bert {
    tokenizer: Tokenizer,
    words: Embedding,
    positions: Embedding,
    kinds: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
    dim: usize,
    device: Device,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    attended_norm: LayerNorm,
    wide: Linear,
    narrow: Linear,
    norm: LayerNorm,
}

impl Bert {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` of a folder. Texts are cut after
    /// `tokens_max` tokens.
    ///
    /// # Errors
    /// When a file is missing, or holds another kind of model.
    pub fn open(folder: &Path, tokens_max: usize) -> Result<Self, Error> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| Error::Read { path, source })
        };
        let path = folder.join("config.json");
        let shape: Shape = serde_json::from_slice(&read("config.json")?)
            .map_err(|source| Error::Config { path, source })?;
        for (what, found, known) in
            [("model_type", &shape.model_type, "bert"), ("hidden_act", &shape.hidden_act, "gelu")]
        {
            if found != known {
                return Err(Error::Kind { what, found: found.clone(), known });
            }
        }
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_bytes(read("tokenizer.json")?)
            .map_err(|source| Error::Tokenizer { path: path.clone(), source })?;
        let max_length = tokens_max.min(shape.max_position_embeddings);
        let cut = TruncationParams { max_length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(cut)).map_err(|source| Error::Tokenizer { path, source })?;
        tokenizer.with_padding(Some(PaddingParams::default()));
        let device = Device::Cpu;
        let weights =
            VarBuilder::from_buffered_safetensors(read("model.safetensors")?, DType::F32, &device)?;
        // Some exports name the encoder, some do not.
        let weights = match weights.contains_tensor("bert.embeddings.word_embeddings.weight") {
            true => weights.pp("bert"),
            false => weights,
        };
        let (dim, eps) = (shape.hidden_size, shape.layer_norm_eps);
        let table = weights.pp("embeddings");
        let layers = weights.pp("encoder.layer");
        let layers = (0..shape.num_hidden_layers).map(|n| Layer::open(&shape, layers.pp(n)));
        Ok(Self {
            tokenizer,
            words: embedding(shape.vocab_size, dim, table.pp("word_embeddings"))?,
            positions: embedding(
                shape.max_position_embeddings,
                dim,
                table.pp("position_embeddings"),
            )?,
            kinds: embedding(shape.type_vocab_size, dim, table.pp("token_type_embeddings"))?,
            norm: layer_norm(dim, eps, table.pp("LayerNorm"))?,
            layers: layers.collect::<Result<_, _>>()?,
            heads: shape.num_attention_heads,
            dim,
            device,
        })
    }

    /// Length of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Vectors of length one of some texts, `texts x dim`.
    ///
    /// # Errors
    /// When the texts cannot be split into tokens.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<f32>, Error> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let tokens = self.tokenizer.encode_batch(texts.to_vec(), true).map_err(Error::Tokens)?;
        let length = tokens[0].get_ids().len();
        let table = |of: &dyn Fn(&tokenizers::Encoding) -> Vec<u32>| {
            let values: Vec<u32> = tokens.iter().flat_map(of).collect();
            Tensor::from_vec(values, (texts.len(), length), &self.device)
        };
        let ids = table(&|row| row.get_ids().to_vec())?;
        let kinds = table(&|row| row.get_type_ids().to_vec())?;
        let there = table(&|row| row.get_attention_mask().to_vec())?.to_dtype(DType::F32)?;
        let positions = Tensor::arange(0, length as u32, &self.device)?;
        let positions = self.positions.forward(&positions)?;
        let sum = (self.words.forward(&ids)? + self.kinds.forward(&kinds)?)?;
        let mut hidden = self.norm.forward(&sum.broadcast_add(&positions)?)?;
        // Added to the scores: padding takes no part.
        let mask = there.affine(1e9, -1e9)?.unsqueeze(1)?.unsqueeze(1)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &mask, self.heads)?;
        }
        let there = there.unsqueeze(2)?;
        let sum = hidden.broadcast_mul(&there)?.sum(1)?;
        let mean = sum.broadcast_div(&there.sum(1)?)?;
        let length = mean.sqr()?.sum_keepdim(1)?.sqrt()?.clamp(1e-12, f64::INFINITY)?;
        Ok(mean.broadcast_div(&length)?.flatten_all()?.to_vec1()?)
    }
}

impl Layer {
    fn open(shape: &Shape, weights: VarBuilder) -> Result<Self, candle_core::Error> {
        let (dim, wide, eps) = (shape.hidden_size, shape.intermediate_size, shape.layer_norm_eps);
        let attention = weights.pp("attention.self");
        Ok(Self {
            query: linear(dim, dim, attention.pp("query"))?,
            key: linear(dim, dim, attention.pp("key"))?,
            value: linear(dim, dim, attention.pp("value"))?,
            attended: linear(dim, dim, weights.pp("attention.output.dense"))?,
            attended_norm: layer_norm(dim, eps, weights.pp("attention.output.LayerNorm"))?,
            wide: linear(dim, wide, weights.pp("intermediate.dense"))?,
            narrow: linear(wide, dim, weights.pp("output.dense"))?,
            norm: layer_norm(dim, eps, weights.pp("output.LayerNorm"))?,
        })
    }

    /// `texts x tokens x dim` to the same.
    fn forward(
        &self,
        hidden: &Tensor,
        mask: &Tensor,
        heads: usize,
    ) -> Result<Tensor, candle_core::Error> {
        let (texts, tokens, dim) = hidden.dims3()?;
        let split = |x: Tensor| {
            x.reshape((texts, tokens, heads, dim / heads))?.transpose(1, 2)?.contiguous()
        };
        let query = split(self.query.forward(hidden)?)?;
        let key = split(self.key.forward(hidden)?)?;
        let value = split(self.value.forward(hidden)?)?;
        let scale = ((dim / heads) as f64).powf(-0.5);
        let scores = (query.matmul(&key.t()?)? * scale)?.broadcast_add(mask)?;
        let mixed = softmax_last_dim(&scores)?.matmul(&value)?;
        let mixed = mixed.transpose(1, 2)?.reshape((texts, tokens, dim))?;
        let hidden = self.attended_norm.forward(&(self.attended.forward(&mixed)? + hidden)?)?;
        let wide = self.wide.forward(&hidden)?.gelu_erf()?;
        self.norm.forward(&(self.narrow.forward(&wide)? + hidden)?)
    }
}
