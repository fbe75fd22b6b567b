//! Who may change things: whoever shows the token of a file.

use std::path::{Path, PathBuf};

use actix_web::HttpRequest;
use actix_web::http::header::AUTHORIZATION;

/// A shorter token could be guessed.
const BYTES_MIN: usize = 16;

/// A token, as its hash: two hashes compare in the same time wherever they differ.
pub struct Token(blake3::Hash);

/// Why a token file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("server.items_token_file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "server.items_token_file {path}: a token of {found} bytes can be guessed: give {BYTES_MIN} \
         or more"
    )]
    Short { path: PathBuf, found: usize },
}

impl Token {
    /// Reads the token of a file, without white space around it; `None` for an empty path.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let token = text.trim().as_bytes();
        if token.len() < BYTES_MIN {
            return Err(Error::Short { path: path.to_owned(), found: token.len() });
        }
        Ok(Some(Self(blake3::hash(token))))
    }

    /// Whether a request shows the token as `Authorization: Bearer ...`.
    pub fn is_shown_by(&self, http: &HttpRequest) -> bool {
        let shown = http.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
        let scheme = b"bearer ";
        let bearer = |value: &&[u8]| {
            value.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        };
        shown.filter(bearer).is_some_and(|value| blake3::hash(&value[scheme.len()..]) == self.0)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn only_the_bearer_of_the_whole_token_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "correct horse battery\n").unwrap();
        let token = Token::open(&path).unwrap().unwrap();
        let shown = |value: &str| {
            let request = TestRequest::default().insert_header((AUTHORIZATION, value));
            token.is_shown_by(&request.to_http_request())
        };
        assert!(shown("Bearer correct horse battery") && shown("bearer correct horse battery"));
        for wrong in ["correct horse battery", "Bearer correct horse", "Basic x", "Bearer ", ""] {
            assert!(!shown(wrong), "{wrong}");
        }
        assert!(!token.is_shown_by(&TestRequest::default().to_http_request()));
    }

    #[test]
    fn a_file_without_a_real_token_is_refused_and_no_file_is_no_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(Token::open(Path::new("")).unwrap().is_none());
        assert!(matches!(Token::open(&path), Err(Error::Read { .. })));
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(Token::open(&path), Err(Error::Short { found: 5, .. })));
    }
}
