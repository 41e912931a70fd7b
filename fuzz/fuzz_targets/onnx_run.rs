//! ONNX files: read, and run in the interpreter and the engine.
#![no_main]

#[path = "../../framework/engine/tests/properties/mod.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    properties::load_and_run(data);
});
