// Python binding of the core; the only file that knows nanobind.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <tuple>

#include "budget.h"
#include "forest.h"
#include "step.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace rolltree;

namespace {

template <class T, int Dim>
using In = nb::ndarray<const T, nb::ndim<Dim>, nb::c_contig, nb::device::cpu>;
template <class T, int Dim>
using Out = nb::ndarray<T, nb::ndim<Dim>, nb::c_contig, nb::device::cpu>;

void same(const char* name, std::size_t got, std::size_t wanted) {
  if (got != wanted) throw InputFault(name, std::to_string(got), std::to_string(wanted) + " long, one per row");
}

/// The memory of a batch of drafts; made once, filled every step, seen by Python as arrays.
struct Drafts {
  Drafts(std::size_t rows_, std::size_t width_)
      : rows(rows_), width(width_), tokens(rows * width), parents(rows * width), survival(rows * width),
        source(rows * width), lengths(rows) {
    if (rows == 0 || width == 0) throw InputFault("Drafts.shape", "0", "at least one row and one column");
  }
  DraftArrays first(std::size_t n) {
    if (n > rows) throw InputFault("sessions.shape", std::to_string(n), "at most the rows of the drafts");
    return {n, width, tokens.data(), parents.data(), survival.data(), source.data(), lengths.data()};
  }
  std::size_t rows, width;
  std::vector<std::int32_t> tokens, parents;
  std::vector<float> survival;
  std::vector<std::uint8_t> source;
  std::vector<std::int32_t> lengths;
};

template <class T>
auto table(std::vector<T> Drafts::* member) {
  return [member](Drafts& d) { return nb::ndarray<nb::numpy, T, nb::ndim<2>>((d.*member).data(), {d.rows, d.width}); };
}

/// A step whose buffers and text stay where they are as long as it may read them.
struct BoundStep {
  BoundStep(Forest& forest, std::size_t rows, std::size_t width, Out<std::int32_t, 2> memory)
      : step(forest, rows, width, memory.shape(0), memory.data()), buffers(memory) {
    same("buffers.shape[1]", memory.shape(1), Step::buffer_size(rows, width));
  }
  Step step;
  Out<std::int32_t, 2> buffers;
  std::optional<In<std::int32_t, 2>> text;
};

template <class T>
auto column(std::vector<T> Turn::* member) {
  return [member](Turn& t) { return nb::ndarray<nb::numpy, T, nb::ndim<1>>((t.*member).data(), {(t.*member).size()}); };
}

using unlocked = nb::call_guard<nb::gil_scoped_release>;

DraftOptions rule(float min_survival, std::uint32_t min_match, bool tree, bool raw) {
  DraftOptions options;
  options.min_survival = min_survival;
  options.min_match = min_match;
  options.tree = tree;
  options.raw = raw;
  return options;
}

nb::dict as_dict(const TreeStats& s) {
  nb::dict out;
  out["bytes"] = s.bytes;
  out["live"] = s.live;
  out["kept"] = s.kept;
  out["states"] = s.states;
  out["tokens"] = s.tokens;
  out["pending"] = static_cast<std::size_t>(s.pending);
  return out;
}

void raise_python(const char* kind, nb::object arguments) {
  nb::object type = nb::module_::import_("rolltree.errors").attr(kind);
  PyErr_SetObject(type.ptr(), type(*arguments).ptr());
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const InputFault& e) {
    raise_python("InvalidInputError", nb::make_tuple(e.name, nb::str(e.value.c_str()), e.allowed));
  } catch (const ClosedFault& e) {
    raise_python("SessionClosedError", nb::make_tuple(e.what()));
  } catch (const CapacityFault& e) {
    raise_python("CapacityError", nb::make_tuple(e.what()));
  }
}

nb::ndarray<nb::numpy, float, nb::ndim<2>> noise(In<std::uint64_t, 1> keys, std::uint32_t vocab) {
  const std::size_t rows = keys.shape(0);
  auto* data = new float[rows * vocab];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  {
    nb::gil_scoped_release release;
    for (std::size_t i = 0; i < rows; ++i) gumbel_row(keys(i), vocab, data + i * vocab);
  }
  return {data, {rows, vocab}, owner};
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native core: per-prompt trees, drafts, budget and the sampler's noise.";
  nb::register_exception_translator(translate);

  m.def(
      "murmur3_exponential",
      [](std::uint64_t seed, std::uint64_t position, std::int32_t token) {
        return PlaceNoise({SamplerNoise::Hash::murmur3, seed, position}, 0)(static_cast<std::uint32_t>(token));
      },
      "seed"_a, "position"_a, "token"_a, "The exponential noise of one token as vLLM's sampler has it: -log of it is Gumbel noise.");
  m.def(
      "murmur3_argmax",
      [](In<float, 2> logits, In<std::int64_t, 1> seeds, In<std::int64_t, 1> positions, Out<std::int64_t, 1> out) {
        const std::size_t rows = logits.shape(0), vocabulary = logits.shape(1);
        same("seeds.shape", seeds.shape(0), rows);
        same("positions.shape", positions.shape(0), rows);
        same("out.shape", out.shape(0), rows);
        nb::gil_scoped_release release;
        for (std::size_t b = 0; b < rows; ++b)
          out.data()[b] = murmur3_argmax(logits.data() + b * vocabulary, static_cast<std::uint32_t>(vocabulary),
                                         static_cast<std::uint64_t>(seeds.data()[b]), static_cast<std::uint32_t>(positions.data()[b]));
      },
      "logits"_a.noconvert(), "seeds"_a.noconvert(), "positions"_a.noconvert(), "out"_a.noconvert(),
      "What vLLM's sampler draws from logits by the noise of (seed, position, token): float32[N, V], int64[N], int64[N] -> int64[N].");
  m.def("gumbel_noise", &noise, "keys"_a.noconvert(), "vocab"_a,
        "Gumbel noise for each (seed, position) key and token: uint64[N] -> float32[N, vocab].");

  m.def(
      "allocate",
      [](In<float, 2> survival, In<std::int32_t, 1> lengths, double base, double row, double token, double cell,
         double ragged, double floor, Out<std::int32_t, 1> verified) {
        const std::size_t rows = survival.shape(0), width = survival.shape(1);
        same("lengths.shape", lengths.shape(0), rows);
        same("verified.shape", verified.shape(0), rows);
        for (std::size_t b = 0; b < rows; ++b)
          if (lengths(b) < 0 || static_cast<std::size_t>(lengths(b)) > width)
            throw InputFault("lengths", std::to_string(lengths(b)), "between 0 and the width of survival");
        nb::gil_scoped_release release;
        allocate(survival.data(), lengths.data(), rows, width, StepCost{base, row, token, cell, ragged, floor},
                 verified.data());
      },
      "survival"_a.noconvert(), "lengths"_a.noconvert(), nb::kw_only(), "base"_a, "row"_a, "token"_a, "cell"_a,
      "ragged"_a, "floor"_a, "verified"_a.noconvert(),
      "Cut drafts to the lengths of most goodput: float32[B, K], int32[B] -> int32[B].");

  nb::class_<Drafts>(m, "Drafts", "Memory of a batch of drafts; the arrays are views that every draft overwrites.")
      .def(nb::init<std::size_t, std::size_t>(), "rows"_a, "width"_a)
      .def_prop_ro("tokens", table(&Drafts::tokens), nb::rv_policy::reference_internal, "int32[rows, width]")
      .def_prop_ro("parents", table(&Drafts::parents), nb::rv_policy::reference_internal, "int32[rows, width]")
      .def_prop_ro("survival", table(&Drafts::survival), nb::rv_policy::reference_internal, "float32[rows, width]")
      .def_prop_ro("source", table(&Drafts::source), nb::rv_policy::reference_internal, "uint8[rows, width]")
      .def_prop_ro(
          "lengths", [](Drafts& d) { return nb::ndarray<nb::numpy, std::int32_t, nb::ndim<1>>(d.lengths.data(), {d.rows}); },
          nb::rv_policy::reference_internal, "int32[rows]");

  nb::class_<History>(m, "History", "A prompt's earlier rollouts as a tree beside any forest, for one thread; calls release the GIL.")
      .def("open", &History::open, unlocked(), "version"_a, "from_prompt"_a, "Begin a rollout after the prompt, or at the root.")
      .def(
          "append",
          [](History& h, In<std::int32_t, 1> tokens, bool context) {
            nb::gil_scoped_release release;
            Forest::check_tokens("tokens", tokens.data(), tokens.shape(0));
            h.append(tokens.data(), tokens.shape(0), context);
          },
          "tokens"_a.noconvert(), "context"_a = false, "Append int32[n] tokens to the rollout that was begun last.");

  nb::class_<Forest>(m, "Forest", "Trees and sessions behind integer handles. Thread-safe; batch calls release the GIL.")
      .def(
          "__init__",
          [](Forest* self, std::uint32_t depth, std::uint32_t window, double decay, std::uint32_t context_weight,
             std::uint32_t shared_window, std::size_t own_bytes, std::size_t shared_bytes) {
            new (self) Forest(TreeOptions{depth, window, decay, context_weight}, shared_window, Limits{own_bytes, shared_bytes});
          },
          nb::kw_only(), "depth"_a = 64, "window"_a = 64, "decay"_a = 1.0, "context_weight"_a = 16,
          "shared_window"_a = 0, "own_bytes"_a = 0, "shared_bytes"_a = 0)
      .def(
          "add_tree",
          [](Forest& f, In<std::int32_t, 1> prompt, std::int64_t version) {
            nb::gil_scoped_release release;
            return f.add_tree(prompt.data(), prompt.shape(0), version);
          },
          "prompt"_a.noconvert(), "version"_a = 0, "Index a prompt (int32[n]); returns the tree's handle.")
      .def(
          "history",
          [](Forest& f, In<std::int32_t, 1> prompt, std::int64_t version) {
            return f.history(prompt.data(), prompt.shape(0), version);
          },
          "prompt"_a.noconvert(), "version"_a, "Begin a history of a prompt (int32[n]), whose oldest rollout has this version.")
      .def("adopt", &Forest::adopt, unlocked(), "tree"_a, "history"_a,
           "Put a history of the tree's prompt before what the tree holds; the history is empty afterwards.")
      .def("most_adopted", &Forest::most_adopted, "Rollouts that a history may have.")
      .def("remove_tree", &Forest::remove_tree, unlocked(), "tree"_a, "Forget a tree that has no live sessions.")
      .def("clear", &Forest::clear, unlocked(), "Forget all trees; no session may be live. Handles are never given out again, sums go on.")
      .def("finish", &Forest::finish, unlocked(), "Do all work that waits in trees now, however long it takes.")
      .def("relieve", &Forest::relieve, unlocked(), "Start to make a tree with live sessions smaller by its oldest rollouts.")
      .def("own_bytes", &Forest::own_bytes, unlocked(), "Bytes of the prompts' own trees. O(1).")
      .def("bytes", &Forest::bytes, unlocked(), "Bytes of all trees, the shared one and pages that are being given back included. O(1).")
      .def(
          "open",
          [](Forest& f, std::int64_t tree, std::int64_t version, bool reader, bool from_prompt, std::uint64_t seed, bool coupled,
             bool run_ahead, std::optional<std::uint64_t> murmur3_offset) {
            using Hash = SamplerNoise::Hash;
            const Hash hash = !coupled ? Hash::none : murmur3_offset ? Hash::murmur3 : Hash::rolltree;
            return f.open(tree, version, reader, from_prompt, {hash, seed, murmur3_offset.value_or(0)}, run_ahead);
          },
          unlocked(), "tree"_a, "version"_a = 0, "reader"_a = false, "from_prompt"_a = true, "seed"_a = 0, "coupled"_a = false,
          "run_ahead"_a = false, "murmur3_offset"_a = nb::none(),
          "Open a session after the tree's prompt (or at the root); returns its handle. Coupled: drafts follow rolltree's noise, or\n"
          "murmur3 of (seed, murmur3_offset + generated tokens, token), as vLLM draws.")
      .def("close", &Forest::close, unlocked(), "session"_a, "keep"_a = true, "End a session; keep or forget its text.")
      .def(
          "append",
          [](Forest& f, std::int64_t session, In<std::int32_t, 1> tokens, bool context) {
            nb::gil_scoped_release release;
            f.append(session, tokens.data(), tokens.shape(0), context);
          },
          "session"_a, "tokens"_a.noconvert(), "context"_a = false, "Append int32[n] tokens to one session.")
      .def(
          "append_token", [](Forest& f, std::int64_t session, std::int32_t token) { f.append(session, &token, 1, false); }, unlocked(),
          "session"_a, "token"_a, "Append one token to one session.")
      .def(
          "append_batch",
          [](Forest& f, In<std::int64_t, 1> sessions, In<std::int32_t, 1> tokens, In<std::int32_t, 1> offsets) {
            same("offsets.shape", offsets.shape(0), sessions.shape(0) + 1);
            nb::gil_scoped_release release;
            f.append_batch(sessions.data(), sessions.shape(0), tokens.data(), tokens.shape(0), offsets.data());
          },
          "sessions"_a.noconvert(), "tokens"_a.noconvert(), "offsets"_a.noconvert(),
          "Append tokens[offsets[b]:offsets[b + 1]] to session b: int64[B], int32[n], int32[B + 1].")
      .def(
          "draft_batch",
          [](Forest& f, In<std::int64_t, 1> sessions, In<std::int32_t, 1> limits, float min_survival, std::uint32_t min_match,
             bool tree, Drafts& out, bool raw) {
            same("limits.shape", limits.shape(0), sessions.shape(0));
            const DraftArrays rows = out.first(sessions.shape(0));
            nb::gil_scoped_release release;
            f.draft_batch(sessions.data(), limits.data(), rule(min_survival, min_match, tree, raw), rows);
          },
          "sessions"_a.noconvert(), "limits"_a.noconvert(), "min_survival"_a, "min_match"_a, "tree"_a, "out"_a, "raw"_a = false,
          "Draft for each session (int64[B], int32[B]) into the first B rows of `out`. raw: the paper's rule, shares after\n"
          "the longest suffix in the own tree, as they are.")
      .def(
          "matches",
          [](Forest& f, In<std::int64_t, 1> sessions, Out<std::int32_t, 1> out) {
            same("out.shape", out.shape(0), sessions.shape(0));
            f.matches(sessions.data(), sessions.shape(0), out.data());
          },
          "sessions"_a.noconvert(), "out"_a.noconvert(),
          "Tokens of the longest suffix with a continuation in each session's own tree: int64[B] -> int32[B].")
      .def(
          "draft_one",
          [](Forest& f, std::int64_t session, std::int32_t limit, float min_survival, std::uint32_t min_match, bool tree,
             Drafts& out) { f.draft_batch(&session, &limit, rule(min_survival, min_match, tree, false), out.first(1)); },
          "session"_a, "limit"_a, "min_survival"_a, "min_match"_a, "tree"_a, "out"_a,
          "Draft for one session into the first row of `out`: a batch of one without the arrays.")
      .def(
          "settle",
          [](Forest& f, In<std::int64_t, 1> sessions, Drafts& drafts, In<std::int32_t, 1> rows,
             In<std::int32_t, 1> verified, In<std::int32_t, 1> emitted, In<std::int32_t, 1> offsets,
             Out<std::int32_t, 1> accepted) {
            const std::size_t n = sessions.shape(0);
            const DraftArrays drafted = drafts.first(verified.shape(0));
            same("rows.shape", rows.shape(0), n);
            same("accepted.shape", accepted.shape(0), n);
            same("offsets.shape", offsets.shape(0), n + 1);
            nb::gil_scoped_release release;
            f.settle(sessions.data(), n, drafted, rows.data(), verified.data(), emitted.data(), emitted.shape(0),
                     offsets.data(), accepted.data());
          },
          "sessions"_a.noconvert(), "drafts"_a, "rows"_a.noconvert(), "verified"_a.noconvert(), "emitted"_a.noconvert(),
          "offsets"_a.noconvert(), "accepted"_a.noconvert(),
          "Judge drafts by the emitted tokens, learn from the verdicts, append the tokens. rows[b]: where the draft of\n"
          "session b is, or -1; verified[row]: how many of its nodes were verified.")
      .def(
          "shared_prefix",
          [](Forest& f, std::int64_t tree, In<std::int32_t, 1> text) { return f.shared_prefix(tree, text.data(), text.shape(0)); },
          "tree"_a, "text"_a.noconvert(), "(common prefix of text and the tree's prompt, length of that prompt), in tokens.")
      .def("check", &Forest::check, "tree"_a, "Integrity walk; '' when sound, else the first fault.")
      .def("check_shared", &Forest::check_shared, "Integrity walk of the shared tree.")
      .def(
          "stats", [](Forest& f, std::int64_t tree) { return as_dict(f.stats(tree)); },
          nb::sig("def stats(self, tree: int) -> dict[str, int]"), "tree"_a, "Bytes, live and kept sequences, states, tokens, whether work waits.")
      .def(
          "shared_stats", [](Forest& f) { return as_dict(f.shared_stats()); },
          nb::sig("def shared_stats(self) -> dict[str, int]"), "The same of the shared tree; zeros when there is none.")
      .def(
          "count", [](Forest& f, std::int64_t tree, In<std::int32_t, 1> text) { return f.count(tree, text.data(), text.shape(0)); },
          "tree"_a, "text"_a.noconvert(), "Weighted occurrences of a substring, in 1/64 rollouts.")
      .def(
          "longest_continuation",
          [](Forest& f, std::int64_t session, In<std::int32_t, 1> text, bool shared) {
            return f.longest_continuation(session, text.data(), text.shape(0), shared);
          },
          "session"_a, "text"_a.noconvert(), "shared"_a = false,
          "How many first tokens of int32[n] follow some suffix of the session's text in its tree: an oracle's draft.")
      .def("generated", &Forest::generated, "session"_a, "Tokens generated so far in a session.")
      .def(
          "source_sums",
          [](Forest& f) {
            std::vector<std::tuple<std::uint64_t, std::uint64_t>> out;
            for (const SourceSums& s : f.source_sums()) out.emplace_back(s.drafted, s.accepted);
            return out;
          },
          "(drafted, accepted) sums for prompt, own, sibling, history, shared, run-ahead.")
      .def("learned", &Forest::learned, "Tokens that the ranker has learned from.")
      .def("set_threads", &Forest::set_threads, "threads"_a, "Threads that draft large batches; drafts do not depend on it.");

  const auto same_memory = nb::rv_policy::reference_internal;
  nb::class_<Turn>(m, "Turn", "What one step gets and gives; see native/step.h for whose it is when. Arrays are views.")
      .def_prop_ro("number", [](Turn& t) { return t.number; }, "Number of the step, from 1.")
      .def_prop_ro("sessions", column(&Turn::sessions), same_memory, "int64[rows]: session, or -1")
      .def_prop_ro("slots", column(&Turn::slots), same_memory, "int32[rows]: row of the text")
      .def_prop_ro("prompts", column(&Turn::prompts), same_memory, "int32[rows]: length of the prompt")
      .def_prop_ro("ends", column(&Turn::ends), same_memory, "int32[rows]: length at which the request ends")
      .def_prop_ro("limits", column(&Turn::limits), same_memory, "int32[rows]: draft tokens at most")
      .def_prop_ro("least", column(&Turn::least), same_memory, "int32[rows]: length from which on stop tokens end it")
      .def(
          "set_stops",
          [](Turn& t, In<std::int32_t, 1> ends, In<std::int32_t, 1> stops) {
            if (ends.shape(0) > t.stop_ends.size()) throw InputFault("ends.shape", std::to_string(ends.shape(0)), "at most the rows of the step");
            std::copy_n(ends.data(), ends.shape(0), t.stop_ends.begin());
            t.stops.assign(stops.data(), stops.data() + stops.shape(0));
          },
          "ends"_a.noconvert(), "stops"_a.noconvert(),
          "Set the stop tokens: those of row b, rising, are stops[ends[b - 1]:ends[b]]; int32[rows or fewer], int32[n].")
      .def_prop_ro("taken", column(&Turn::taken), same_memory, "int32[rows]: tokens that the row's session took in")
      .def_prop_ro("tokens", column(&Turn::tokens), same_memory, "int32[n]: these tokens, row after row")
      .def_prop_ro("marks", column(&Turn::marks), same_memory, "uint8[rows]: 1 a stop token ended it, 2 its text was taken back")
      .def_prop_ro("gain", column(&Turn::gain), same_memory, "float64[width]: expected tokens of each column of the drafts, before any cut")
      .def_prop_ro("drafted", [](Turn& t) { return t.drafted; }, "Draft tokens that were judged.")
      .def_prop_ro("accepted", [](Turn& t) { return t.accepted; }, "Of these, accepted.")
      .def_prop_ro("outcome", [](Turn& t) { return static_cast<int>(t.outcome); }, "0 whole; 1 failed, nothing changed; 2 failed in the midst.")
      .def_prop_ro("error", [](Turn& t) { return std::string(t.error.data()); }, "What failed.");
  nb::class_<BoundStep>(m, "Step",
                        "Steps of an engine, each one call on plain buffers: judge, learn, append, draft, cut. Host and stream take turns: fill in\n"
                        "`next`, `hand_over`, launch `entry`; read `result` when `done` has reached its number.")
      .def(
          "__init__",
          [](BoundStep* self, Forest& forest, std::size_t rows, std::size_t width, Out<std::int32_t, 2> buffers) {
            new (self) BoundStep(forest, rows, width, buffers);
          },
          "forest"_a, "rows"_a, "width"_a, "buffers"_a.noconvert(), nb::keep_alive<1, 2>(),
          "`buffers` int32[turns, rows (3 + width)] stays the caller's: for each turn tokens sampled [rows] and length behind them [rows], by\n"
          "the device, and for it number of drafts and drafts [rows, 1 + width].")
      .def("next", [](BoundStep& s) { return s.step.next(); }, nb::rv_policy::reference_internal, nb::sig("def next(self) -> Turn | None"),
           "The turn to fill in; None while all are in flight.")
      .def(
          "hand_over",
          [](BoundStep& s, std::size_t rows, In<std::int32_t, 2> text, std::int32_t vocabulary, std::size_t room, float min_survival,
             std::uint32_t min_match, std::optional<std::size_t> verified, bool budget, double base, double row, double token, double cell,
             double ragged, double floor) {
            StepPlan plan{rows, text.data(), text.shape(0), text.shape(1), vocabulary, room, min_survival, min_match, budget,
                          {base, row, token, cell, ragged, floor}};
            if (verified) plan.verified = *verified;
            const std::uint64_t number = s.step.hand_over(plan);
            s.text = text;
            return number;
          },
          "rows"_a, "text"_a.noconvert(), nb::kw_only(), "vocabulary"_a, "room"_a, "min_survival"_a, "min_match"_a,
          "verified"_a.none() = nb::none(), "budget"_a = false, "base"_a = 0.0, "row"_a = 0.0, "token"_a = 0.0, "cell"_a = 0.0,
          "ragged"_a = 0.0, "floor"_a = 0.0,
          "Give the filled turn to the stream: its first rows, the text int32[slots, length], the same array for all turns in flight,\n"
          "and what drafts are cut to. Returns its number.")
      .def("take_back", [](BoundStep& s) { s.step.take_back(); }, "The turn handed over last was not launched: it is the host's again.")
      .def(
          "entry",
          [](BoundStep& s, Turn& t) {
            if (t.step != &s.step) throw InputFault("turn", "another", "one of this step");
            return std::pair(reinterpret_cast<std::uintptr_t>(&Step::enter), reinterpret_cast<std::uintptr_t>(&t));
          },
          "turn"_a, "Addresses of a function void(void*) that does a turn, and of its argument: for a thread or stream without Python.")
      .def("run", [](BoundStep& s, Turn& t) { s.step.run(t); }, "turn"_a, unlocked(), "Do a turn on this thread.")
      .def(
          "result", [](BoundStep& s, std::uint64_t number) { return &s.step.result(number); }, nb::rv_policy::reference_internal, "number"_a,
          "The turn of this number, done; its arrays are good until it is handed over again.")
      .def_prop_ro("done", [](BoundStep& s) { return s.step.done(); }, "Number of the last turn that is done.")
      .def_prop_ro("handed", [](BoundStep& s) { return s.step.handed(); }, "Number of the last turn that was handed over.")
      .def_prop_ro(
          "sums",
          [](BoundStep& s) {
            const Step::Sums& sums = s.step.sums();
            return std::tuple(sums.tokens, sums.drafted, sums.accepted, sums.failed);
          },
          "Tokens, drafted, accepted and failed turns so far; read them while none is in flight.");
}
