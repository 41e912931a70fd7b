//! Numbers that come back from JSON with every bit. Its reader here rounds long fractions to a neighbour of what was
//! written now and then; Rust's own parser never does.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An f64 as a string of the fewest digits that tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Exact(pub f64);

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Exact, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Exact).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_comes_back() {
        for value in [0.1, 1.0 / 3.0, 3.957_359_611_988_068, 0.1 + 0.2, f64::MAX, f64::MIN_POSITIVE, -0.0] {
            let text = serde_json::to_string(&[Some(Exact(value)), None]).unwrap();
            let back: [Option<Exact>; 2] = serde_json::from_str(&text).unwrap();
            assert_eq!((back[0].map(|v| v.0.to_bits()), back[1]), (Some(value.to_bits()), None), "{text}");
        }
        assert!(serde_json::from_str::<Exact>("\"1.2.3\"").is_err());
    }
}
