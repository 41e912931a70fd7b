//! Downloads, from a hub on this machine: `cargo test -p lacuna-weights --features hub --test hub`.
#![cfg(feature = "hub")]

use lacuna_weights::hub;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef";

/// Answers every request by its path, and keeps what was asked.
fn serve(asked: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let elsewhere = address.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let line = lines.next().unwrap_or_default();
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            let token = head.iter().any(|line| line.to_ascii_lowercase().starts_with("authorization:"));
            asked.lock().unwrap().push(format!("{path}{}", if token { " with a token" } else { "" }));
            let file = |name: &str| format!("/a/b/resolve/{COMMIT}/{name}");
            let answer = match path.as_str() {
                "/api/models/a/b/revision/main" => ok(&format!("{{\"sha\": \"{COMMIT}\"}}")),
                "/api/models/a/lies/revision/main" => ok("{\"sha\": \"../../elsewhere\"}"),
                p if p == file("model.safetensors") => {
                    format!(
                        "HTTP/1.1 302 Found\r\nLocation: {elsewhere}/store/1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                }
                "/store/1" => ok("the weights"),
                p if p == file("vocab.txt") => ok("[PAD]"),
                p if p == file("cut.bin") => {
                    "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhalf".into()
                }
                _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into(),
            };
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    address
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

// One test: variables are the process's.
#[test]
fn files_are_downloaded_once_and_whole() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let cache = tempfile::tempdir().unwrap();
    // SAFETY: no other thread of this process reads variables yet.
    unsafe {
        std::env::set_var("HF_ENDPOINT", serve(asked.clone()));
        std::env::set_var("HF_HUB_CACHE", cache.path());
        std::env::set_var("HF_TOKEN", "secret");
        std::env::remove_var("HF_HUB_OFFLINE");
    }
    let said = RefCell::new(Vec::new());
    let find = |name: &str| hub::find(Path::new(name), &|address| said.borrow_mut().push(address.to_owned()));

    let path = find("hf:a/b").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "the weights");
    assert_eq!(std::fs::read_to_string(path.with_file_name("vocab.txt")).unwrap(), "[PAD]");
    assert!(!path.with_file_name("tokenizer.json").exists());
    assert_eq!(said.borrow().len(), 2, "{said:?}");
    let requests = asked.lock().unwrap().len();
    assert!(asked.lock().unwrap()[0].ends_with("with a token"));

    // Again: from the cache, and nobody is asked.
    assert_eq!(find("hf:a/b").unwrap(), path);
    assert_eq!(asked.lock().unwrap().len(), requests);

    // A download that ends early leaves nothing behind.
    assert!(find("hf:a/b/cut.bin").is_err());
    let left: Vec<_> = path.parent().unwrap().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");

    for (name, why) in
        [("hf:a/none", "no such model"), ("hf:a/b/none.bin", "has no none.bin"), ("hf:a/lies", "no commit")]
    {
        let e = find(name).unwrap_err().to_string();
        assert!(e.contains(why), "{e}");
    }
    // SAFETY: the server's thread reads no variables.
    unsafe { std::env::set_var("HF_HUB_OFFLINE", "1") };
    let e = find("hf:a/other").unwrap_err().to_string();
    assert!(e.contains("HF_HUB_OFFLINE"), "{e}");
}
