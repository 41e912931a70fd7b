//! Names of published files in place of paths: `hf:OWNER/NAME`, with `@REVISION` behind it and `/FILE` behind that.
//!
//! A name is looked up where Hugging Face's own tools keep what they download, so that what they have is used as it is:
//!
//! ```text
//! $HF_HUB_CACHE, or $HF_HOME/hub, or ~/.cache/huggingface/hub
//!   models--OWNER--NAME/refs/REVISION                the commit that a branch was at
//!   models--OWNER--NAME/snapshots/COMMIT/FILE
//! ```
//! What is not there is an error, unless this crate is built with the feature `hub`: then it is downloaded from
//! `$HF_ENDPOINT` (else huggingface.co) into that place, with `$HF_TOKEN` where it is set, and never while
//! `$HF_HUB_OFFLINE` is 1.

use crate::{Error, Fault};
use std::path::{Path, PathBuf};

/// Files that a name without one stands for: the first that there is.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Longest name.
const NAME_BYTES_MAX: usize = 512;

/// The file that `path` names, if it is such a name; else `path`. `before` hears the address of each file that is
/// downloaded.
///
/// Errors: a name that is none, a file that is neither kept nor downloaded.
pub fn find(path: &Path, before: &dyn Fn(&str)) -> Result<PathBuf, Error> {
    let at = |fault| Error { path: path.to_owned(), fault };
    let Some(text) = path.to_str().and_then(|text| text.strip_prefix("hf:")) else {
        return Ok(path.to_owned());
    };
    let name = Name::parse(text).map_err(at)?;
    let folder = folder(|key| std::env::var_os(key).map(PathBuf::from)).map_err(at)?;
    match name.kept(&folder) {
        Some(file) => Ok(file),
        None => missing(&name, &folder, before).map_err(at),
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Name {
    owner: String,
    name: String,
    revision: String,
    file: Option<String>,
}

impl Name {
    fn parse(text: &str) -> Result<Name, Fault> {
        let wrong = || {
            Fault::Unsupported("names are hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE".into())
        };
        let mut parts = text.split('/');
        let owner = parts.next().unwrap_or_default();
        let (name, revision) =
            parts.next().map(|p| p.split_once('@').unwrap_or((p, "main"))).ok_or_else(wrong)?;
        let file: Vec<&str> = parts.collect();
        // What becomes part of a path stays inside it.
        let is_plain = |part: &&str| {
            let sign = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(sign)
        };
        if text.len() > NAME_BYTES_MAX || ![owner, name, revision].iter().chain(&file).all(is_plain) {
            return Err(wrong());
        }
        Ok(Name {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
            file: Some(file.join("/")).filter(|file| !file.is_empty()),
        })
    }

    fn folder(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}--{}", self.owner, self.name))
    }

    fn files(&self) -> Vec<&str> {
        self.file.as_deref().map_or(WEIGHTS.to_vec(), |file| vec![file])
    }

    fn kept(&self, cache: &Path) -> Option<PathBuf> {
        let folder = self.folder(cache);
        let commit = std::fs::read_to_string(folder.join("refs").join(&self.revision));
        let commit = commit.map_or(self.revision.clone(), |text| text.trim().to_owned());
        let snapshot = folder.join("snapshots").join(commit);
        self.files().iter().map(|file| snapshot.join(file)).find(|path| path.is_file())
    }
}

fn folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, Fault> {
    let of_home = || Some(variable("HOME")?.join(".cache/huggingface"));
    variable("HF_HUB_CACHE")
        .or_else(|| Some(variable("HF_HOME").or_else(of_home)?.join("hub")))
        .ok_or_else(|| Fault::Unsupported("there is no home folder (set HF_HUB_CACHE)".into()))
}

#[cfg(not(feature = "hub"))]
fn missing(name: &Name, cache: &Path, _: &dyn Fn(&str)) -> Result<PathBuf, Fault> {
    let place = name.folder(cache);
    Err(Fault::Unsupported(format!(
        "{} has no {} (this build downloads nothing: `hf download {}/{}` does, or a build with `--features hub`)",
        place.display(),
        name.files().join(" or "),
        name.owner,
        name.name,
    )))
}

#[cfg(feature = "hub")]
use download::missing;

#[cfg(feature = "hub")]
mod download {
    use super::Name;
    use crate::{FILE_BYTES_MAX, Fault};
    use std::fs;
    use std::io::{self, Read};
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;
    use ureq::tls::{RootCerts, TlsConfig};

    /// What lies beside weights for texts; a model need not have them.
    const VOCABULARY: [&str; 3] = ["tokenizer.json", "vocab.txt", "tokenizer_config.json"];
    /// Most bytes of what a hub says of a model.
    const ANSWER_BYTES_MAX: u64 = 16 << 20;

    pub fn missing(name: &Name, cache: &Path, before: &dyn Fn(&str)) -> Result<PathBuf, Fault> {
        if std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| value == "1") {
            return Err(Fault::Unsupported(
                "is not kept here, and HF_HUB_OFFLINE forbids to download".into(),
            ));
        }
        let hub = Hub::new();
        let folder = name.folder(cache);
        let commit = hub.commit(name)?;
        let snapshot = folder.join("snapshots").join(&commit);
        let mut found = None;
        for file in name.files() {
            if hub.fetch(name, &commit, file, &snapshot, before)? {
                found = Some(snapshot.join(file));
                break;
            }
        }
        let Some(found) = found else {
            return Err(Fault::Unsupported(format!("{} has no {}", hub.endpoint, name.files().join(" or "))));
        };
        if name.file.is_none() {
            for file in VOCABULARY {
                hub.fetch(name, &commit, file, &snapshot, before)?;
            }
        }
        // Last, so that a revision is never known without its files.
        let refs = folder.join("refs");
        fs::create_dir_all(&refs)?;
        fs::write(refs.join(&name.revision), commit)?;
        Ok(found)
    }

    struct Hub {
        agent: ureq::Agent,
        endpoint: String,
        token: Option<String>,
    }

    impl Hub {
        fn new() -> Hub {
            let tls = TlsConfig::builder()
                .root_certs(RootCerts::PlatformVerifier)
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .build();
            let agent = ureq::Agent::config_builder()
                .tls_config(tls)
                .timeout_connect(Some(Duration::from_secs(20)))
                .timeout_recv_response(Some(Duration::from_secs(60)))
                .build()
                .into();
            let variable = |key| std::env::var(key).ok().filter(|value| !value.is_empty());
            let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
            Hub { agent, endpoint: endpoint.trim_end_matches('/').to_owned(), token: variable("HF_TOKEN") }
        }

        /// The body at an address, up to `most` bytes; none where there is no such thing.
        fn get(&self, address: &str, most: u64) -> Result<Option<impl Read + use<>>, Fault> {
            let mut request = self.agent.get(address);
            if let Some(token) = &self.token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            match request.call() {
                Err(ureq::Error::StatusCode(404)) => Ok(None),
                Err(e) => Err(Fault::Io(io::Error::other(format!("{address}: {e}")))),
                Ok(answer) => Ok(Some(answer.into_body().into_with_config().limit(most).reader())),
            }
        }

        /// The commit that a revision is at.
        fn commit(&self, name: &Name) -> Result<String, Fault> {
            let Name { owner, name, revision, .. } = name;
            let address = format!("{}/api/models/{owner}/{name}/revision/{revision}", self.endpoint);
            let Some(body) = self.get(&address, ANSWER_BYTES_MAX)? else {
                return Err(Fault::Unsupported(format!("{address}: there is no such model or revision")));
            };
            let answer: serde_json::Value =
                serde_json::from_reader(body).map_err(|e| Fault::Damaged(format!("{address}: {e}")))?;
            let commit = answer["sha"].as_str().unwrap_or_default();
            if commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Fault::damaged(format!("{address}: says no commit"));
            }
            Ok(commit.to_owned())
        }

        /// Puts a file of a commit into a folder; whether there is one.
        fn fetch(
            &self,
            name: &Name,
            commit: &str,
            file: &str,
            snapshot: &Path,
            before: &dyn Fn(&str),
        ) -> Result<bool, Fault> {
            let path = snapshot.join(file);
            if path.is_file() {
                return Ok(true);
            }
            let address = format!("{}/{}/{}/resolve/{commit}/{file}", self.endpoint, name.owner, name.name);
            let Some(mut body) = self.get(&address, FILE_BYTES_MAX)? else { return Ok(false) };
            before(&address);
            let folder = path.parent().unwrap_or(snapshot);
            fs::create_dir_all(folder)?;
            // Under its own name only when it is whole.
            let mut part = tempfile::NamedTempFile::new_in(folder)?;
            io::copy(&mut body, &mut part)?;
            part.as_file().sync_all()?;
            part.persist(&path).map_err(|e| e.error)?;
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_owner_name_revision_and_file() {
        let name = |text: &str| {
            let name = Name::parse(text).unwrap();
            (name.owner, name.name, name.revision, name.file)
        };
        let text = |t: &str| t.to_owned();
        assert_eq!(name("a/b-1.0"), (text("a"), text("b-1.0"), text("main"), None));
        assert_eq!(name("a/b@v2/c/d.bin"), (text("a"), text("b"), text("v2"), Some(text("c/d.bin"))));
        for wrong in [
            "",
            "a",
            "a/",
            "/b",
            "a/..",
            "../b",
            "a/b/../../c",
            "a/b@",
            "a/b/.git",
            "a/b c",
            "a/b/",
            "a\\b/c",
        ] {
            assert!(Name::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Name::parse(&format!("a/{}", "b".repeat(NAME_BYTES_MAX))).is_err());
    }

    #[test]
    fn what_others_downloaded_is_found() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--a--b");
        let [old, new] = ["0123", "4567"].map(|commit| folder.join("snapshots").join(commit));
        for (path, text) in [
            (old.join("pytorch_model.bin"), "old"),
            (new.join("model.safetensors"), "new"),
            (new.join("onnx/model.onnx"), "graph"),
            (folder.join("refs/main"), "4567\n"),
        ] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let kept = |text: &str| Name::parse(text).unwrap().kept(cache.path());
        assert_eq!(kept("a/b"), Some(new.join("model.safetensors")));
        assert_eq!(kept("a/b@0123"), Some(old.join("pytorch_model.bin")));
        assert_eq!(kept("a/b/onnx/model.onnx"), Some(new.join("onnx/model.onnx")));
        assert_eq!(kept("a/b/other.bin"), None);
        assert_eq!(kept("a/c"), None);
    }

    #[test]
    fn the_cache_is_where_its_variables_say() {
        let given = |rows: &'static [(&str, &str)]| {
            folder(|key| rows.iter().find(|row| row.0 == key).map(|row| PathBuf::from(row.1))).ok()
        };
        assert_eq!(given(&[("HOME", "/h")]), Some("/h/.cache/huggingface/hub".into()));
        assert_eq!(given(&[("HOME", "/h"), ("HF_HOME", "/f")]), Some("/f/hub".into()));
        assert_eq!(given(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Some("/c".into()));
        assert_eq!(given(&[]), None);
    }

    #[test]
    fn paths_stay_paths() {
        let path = Path::new("weights/hf:model.safetensors");
        assert_eq!(find(path, &|_| {}).unwrap(), path);
        let e = find(Path::new("hf:../x"), &|_| {}).unwrap_err().to_string();
        assert!(e.contains("hf:OWNER/NAME"), "{e}");
    }
}
