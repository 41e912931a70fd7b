//! Removes ops, constants and values that no output needs.

use crate::error::Result;
use crate::graph::Graph;

/// Clears the tables of dead rows; inputs stay. Ids change. Returns how many live ops went.
pub fn drop_dead(g: &mut Graph) -> Result<usize> {
    let before = g.order.len();
    *g = g.compact();
    Ok(before - g.order.len())
}
