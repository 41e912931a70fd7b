//! What stands inside `eval(...)`.
#![no_main]

#[path = "../../framework/recipe/tests/properties/mod.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        properties::expression(text);
    }
});
