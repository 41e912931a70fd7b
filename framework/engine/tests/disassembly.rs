//! Step loops keep their sums in registers: this test disassembles itself, engine included, and looks.
//!
//! A step loop is an innermost loop of a kernel with a multiplication on vectors or tiles in it. The compiler has spilled sums
//! of such loops to the stack before, at two to four times the time, and no other test would notice.

use lacuna_engine::kernels::CONV_KERNELS;
use std::process::Command;

const MULTIPLICATIONS: &[&str] =
    &["vpdpbusd", "vpdpwssd", "vpmaddwd", "vpmaddubsw", "vfmadd", "vdpbf16ps", "tdpb"];
/// Step loops that must be found, so that the test sees what it looks for.
const MUST_HAVE_LOOPS: &[(&str, usize)] = &[
    ("kernels::lane_gather::avx512::", 20),
    ("kernels::dense_avx512::int8::", 36),
    ("kernels::interleave::block::", 4),
    ("kernels::dense_avx2::", 16),
    ("kernels::dense_bf16::", 38),
];

#[test]
fn step_loops_keep_vectors_off_the_stack() {
    if cfg!(debug_assertions) || !cfg!(target_arch = "x86_64") {
        println!("skipped 1: only optimised builds for x86-64 have the loops that this is about");
        return;
    }
    // The kernels are part of this program because nobody knows what is done with their table.
    std::hint::black_box(CONV_KERNELS);
    let me = std::env::current_exe().expect("a path");
    let made = Command::new("objdump").args(["-d", "--no-show-raw-insn", "--demangle"]).arg(me).output();
    let text = match made {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).into_owned(),
        _ => {
            println!("skipped 1: there is no objdump (package binutils)");
            return;
        }
    };
    let functions = functions(&text);
    let mut found = vec![0; MUST_HAVE_LOOPS.len()];
    let mut spills = Vec::new();
    for f in functions.iter().filter(|f| f.name.contains("lacuna_engine::kernels::")) {
        for body in step_loops(f) {
            for (found, (part, _)) in found.iter_mut().zip(MUST_HAVE_LOOPS) {
                *found += usize::from(f.name.contains(part));
            }
            spills.extend(body.iter().filter(|i| is_spill(i)).map(|i| format!("{}: {}", f.name, i.text)));
        }
    }
    println!("{} functions, {found:?} step loops", functions.len());
    for (found, (part, least)) in found.iter().zip(MUST_HAVE_LOOPS) {
        assert!(found >= least, "{found} step loops in {part}, not {least}: does the test still see them?");
    }
    assert!(spills.is_empty(), "step loops that keep vectors on the stack:\n{}", spills.join("\n"));
}

#[test]
fn a_spill_in_a_step_loop_is_seen_and_others_are_not() {
    let text = "
0000000000001000 <lacuna_engine::kernels::example::p2>:
    1000:\tvmovdqu64 %zmm0,0x40(%rsp)
    1004:\tvmovdqa64 (%rdi),%zmm30
    1008:\tvpermb (%rsi),%zmm30,%zmm16
    100c:\tvpdpbusd %zmm31,%zmm16,%zmm0
    1010:\tmov    0x8(%rsp),%rax
    1014:\tvmovdqu64 %zmm0,0x80(%rsp)
    1018:\tdec    %eax
    101a:\tjne    1004 <lacuna_engine::kernels::example::p2+0x4>
    101c:\tret
";
    let all = functions(text);
    let loops = step_loops(&all[0]);
    assert_eq!(loops.len(), 1);
    let spills: Vec<u64> = loops[0].iter().filter(|i| is_spill(i)).map(|i| i.at).collect();
    assert_eq!(spills, [0x1014]);
}

fn is_spill(i: &Instruction<'_>) -> bool {
    i.text.contains("(%rsp")
        && ["%xmm", "%ymm", "%zmm", "%tmm"].iter().any(|register| i.text.contains(register))
}

struct Instruction<'a> {
    at: u64,
    text: &'a str,
}

struct Function<'a> {
    name: &'a str,
    body: Vec<Instruction<'a>>,
}

/// `0000000000012345 <name>:` begins a function, `   12345:\tmnemonic operands` is an instruction.
fn functions(text: &str) -> Vec<Function<'_>> {
    let mut all: Vec<Function<'_>> = Vec::new();
    for line in text.lines() {
        if let Some((_, name)) = line.strip_suffix(">:").and_then(|l| l.split_once(" <")) {
            all.push(Function { name, body: Vec::new() });
        } else if let (Some((at, text)), Some(last)) = (line.split_once(":\t"), all.last_mut())
            && let Ok(at) = u64::from_str_radix(at.trim(), 16)
        {
            last.body.push(Instruction { at, text: text.trim() });
        }
    }
    all
}

/// Where a jump within the program leads.
fn jumps_to(i: &Instruction<'_>) -> Option<u64> {
    let (mnemonic, operands) = i.text.split_once(' ')?;
    let target = operands.trim().split(' ').next()?;
    mnemonic.starts_with('j').then(|| u64::from_str_radix(target, 16).ok())?
}

/// The innermost loops with a multiplication in them: from a jump's target to the jump back to it.
fn step_loops<'a>(f: &'a Function<'a>) -> Vec<&'a [Instruction<'a>]> {
    let back = |(end, i): (usize, &Instruction<'_>)| {
        let start = f.body[..=end].iter().position(|j| Some(j.at) == jumps_to(i))?;
        Some((start, end))
    };
    let loops: Vec<(usize, usize)> = f.body.iter().enumerate().filter_map(back).collect();
    let holds = |outer: &(usize, usize), inner: &(usize, usize)| {
        outer != inner && outer.0 <= inner.0 && inner.1 <= outer.1
    };
    let innermost = loops.iter().filter(|l| !loops.iter().any(|other| holds(l, other)));
    innermost
        .map(|&(start, end)| &f.body[start..=end])
        .filter(|body| body.iter().any(|i| MULTIPLICATIONS.iter().any(|m| i.text.contains(m))))
        .collect()
}
