//! What must hold of a graph.
