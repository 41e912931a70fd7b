//! ONNX files: read, written, read again.
#![no_main]

#[path = "../../framework/engine/tests/properties/mod.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    properties::load(data);
});
