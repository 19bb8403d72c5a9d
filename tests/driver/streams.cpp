// Streams and events. Work is queued with what it must wait for, and nothing else orders it:
//
//     - the work before it on its stream;
//     - the events that its stream was told to wait for;
//     - on the legacy stream (handle 0): the last work of every blocking stream of the context, and the other way round.
//
// With order 0 work runs only when someone waits for it, and only what that wait needs runs before it: a consumer that
// does not wait for its producer always comes first. With another order a coin is tossed for each piece of work, and
// half of it runs at once: so that it also comes too early for whoever should have been waited for.
//
// While a stream captures, its work is recorded and not run.

#include <algorithm>
#include <set>

#include "stand_in.h"

namespace {

unsigned coin_state = 0, coin_order = 0;

bool coin() {
    if (driver.order == 0) return false;
    if (coin_order != driver.order) coin_state = coin_order = driver.order;
    coin_state = coin_state * 1664525u + 1013904223u;
    return coin_state >> 31;
}

template <class Visit>
void each_stream(Context& context, Visit visit) {
    visit(context.legacy);
    for (auto& [handle, stream] : driver.streams.things)
        if (stream->context == &context) visit(*stream);
}

std::shared_ptr<Work> pending(const std::shared_ptr<Work>& work) { return work && !work->done ? work : nullptr; }

void wait_for(Stream& stream, std::shared_ptr<Work> work) {
    auto waiting = std::make_shared<Work>();
    for (const auto& before : {stream.last, std::move(work)})
        if (pending(before)) waiting->after.push_back(before);
    stream.last = waiting;
}

bool takes_part(const std::vector<CUstream>& streams, CUstream stream) {
    return std::find(streams.begin(), streams.end(), stream) != streams.end();
}

CUresult elapsed(float* milliseconds, CUevent start, CUevent stop) {
    return call("cuEventElapsedTime", Needs::WORK, [&] {
        require(driver.milliseconds > 0, CUDA_ERROR_NOT_SUPPORTED, "there is no GPU here whose time could be taken");
        for (CUevent handle : {start, stop}) {
            const Event& event = driver.events.at(handle);
            require(bool(event.recorded), CUDA_ERROR_INVALID_HANDLE, "the event was never recorded");
            require(!pending(event.recorded), CUDA_ERROR_NOT_READY, "nobody has waited for the event");
        }
        *milliseconds = driver.milliseconds;
    });
}

// What has been queued is one step nearer: who asks again and again comes to an end.
CUresult query(const char* name, const std::function<std::shared_ptr<Work>()>& find) {
    bool ready = true;
    CUresult code = call(name, Needs::WORK, [&] {
        std::shared_ptr<Work> work = find();
        if (!pending(work)) return;
        ready = false;
        while (true) {
            auto before = std::find_if(work->after.begin(), work->after.end(), [](auto& w) { return !w->done; });
            if (before == work->after.end()) break;
            work = *before;
        }
        finish(work);
    });
    return code == CUDA_SUCCESS && !ready ? CUresult(CUDA_ERROR_NOT_READY) : code;
}

}  // namespace

Stream& stream_at(CUstream handle) {
    Context& context = current_context();
    if (!handle || handle == CU_STREAM_LEGACY) {
        refuse_capture(context, "work on the legacy stream");
        return context.legacy;
    }
    Stream& stream = driver.streams.at(handle);
    require(stream.context == &context, CUDA_ERROR_INVALID_HANDLE, "the stream belongs to another context");
    return stream;
}

void queue(Stream& stream, const char* what, std::function<void()> run) {
    if (stream.capture) {
        stream.capture->work.push_back(std::move(run));
        return;
    }
    auto work = std::make_shared<Work>();
    const CUcontext handle = stream.context->handle;
    work->run = [handle, what = std::string(what), run = std::move(run)] {
        Context* context = driver.contexts.find(handle);
        if (!context || context->lost != CUDA_SUCCESS) return;
        try {
            run();
        } catch (const Failure& failure) {
            // What the host would have been told at once is, by now, what the device ran into.
            const bool of_host = int(failure.code) < 700;
            lose(*context, of_host ? CUresult(CUDA_ERROR_ILLEGAL_ADDRESS) : failure.code, what + ": " + failure.why);
        }
    };
    Context& context = *stream.context;
    if (pending(stream.last)) work->after.push_back(stream.last);
    if (&stream == &context.legacy) {
        each_stream(context, [&](Stream& other) {
            if (other.blocking && pending(other.last) && &other != &stream) work->after.push_back(other.last);
        });
        for (auto& orphan : context.orphans)
            if (pending(orphan)) work->after.push_back(orphan);
    } else if (stream.blocking && pending(context.legacy.last)) {
        work->after.push_back(context.legacy.last);
    }
    stream.last = work;
    if (coin()) finish(work);
}

// Runs a piece of work after what it must wait for. Not recursive: a queue may be long.
void finish(const std::shared_ptr<Work>& work) {
    std::vector<std::shared_ptr<Work>> path;
    if (pending(work)) path.push_back(work);
    while (!path.empty()) {
        std::shared_ptr<Work> top = path.back();
        auto& after = top->after;
        while (!after.empty() && after.back()->done) after.pop_back();
        if (!after.empty()) {
            path.push_back(after.back());
            continue;
        }
        if (top->run) top->run();
        top->run = nullptr;
        top->done = true;
        path.pop_back();
    }
}

void finish_all(Context& context) {
    each_stream(context, [](Stream& stream) { finish(stream.last); });
    for (auto& orphan : context.orphans) finish(orphan);
    context.orphans.clear();
}

size_t pending_work() {
    std::set<Work*> seen;
    std::vector<std::shared_ptr<Work>> found;
    auto add = [&](const std::shared_ptr<Work>& work) {
        if (pending(work) && seen.insert(work.get()).second) found.push_back(work);
    };
    for (auto& [handle, context] : driver.contexts.things) {
        each_stream(*context, [&](Stream& stream) { add(stream.last); });
        for (auto& orphan : context->orphans) add(orphan);
    }
    for (size_t i = 0; i < found.size(); ++i)
        for (auto& before : std::vector<std::shared_ptr<Work>>(found[i]->after)) add(before);
    return found.size();
}

void forget_streams(Context& context) {
    for (auto at = driver.streams.things.begin(); at != driver.streams.things.end();)
        at = at->second->context == &context ? driver.streams.things.erase(at) : std::next(at);
    for (auto at = driver.events.things.begin(); at != driver.events.things.end();)
        at = at->second->context == &context ? driver.events.things.erase(at) : std::next(at);
}

// ------------------------------------------------------------------------------------------------------- streams
STAND_IN CUresult cuStreamCreate(CUstream* made, unsigned flags) {
    return call("cuStreamCreate", Needs::WORK, [&] {
        require(flags <= 1, CUDA_ERROR_INVALID_VALUE, "unknown flags");
        *made = driver.streams.add(std::make_unique<Stream>(Stream{&current_context(), flags == 0, nullptr, nullptr}));
    });
}

STAND_IN CUresult cuStreamDestroy_v2(CUstream handle) {
    return release("cuStreamDestroy", Needs::WORK, [&] {
        Stream& stream = driver.streams.at(handle);
        if (pending(stream.last)) stream.context->orphans.push_back(stream.last);
        driver.streams.remove(handle);
    });
}

STAND_IN CUresult cuStreamSynchronize(CUstream handle) {
    return call("cuStreamSynchronize", Needs::WORK, [&] {
        Stream& stream = stream_at(handle);
        if (stream.capture) {
            stream.capture->invalid = true;
            fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the stream captures");
        }
        if (&stream == &stream.context->legacy) queue(stream, "a wait", [] {});
        finish(stream.last);
    });
}

STAND_IN CUresult cuStreamQuery(CUstream handle) {
    return query("cuStreamQuery", [&] { return stream_at(handle).last; });
}

STAND_IN CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
    return call("cuStreamWaitEvent", Needs::WORK, [&] {
        Stream& stream = stream_at(handle);
        Event& event = driver.events.at(event_handle);
        if (event.capture) {  // the stream takes part in the capture from here on
            require(!stream.capture || stream.capture == event.capture, CUDA_ERROR_INVALID_VALUE,
                    "the stream takes part in another capture");
            require(&stream != &stream.context->legacy, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy stream");
            stream.capture = event.capture;
            auto& graph = *event.capture;
            if (!takes_part(graph.streams, handle)) graph.streams.push_back(handle);
            if (handle == graph.streams.front()) graph.joined.push_back(event.recorded_on);
        } else {
            require(!stream.capture || !pending(event.recorded), CUDA_ERROR_INVALID_VALUE,
                    "a capture cannot wait for work outside it");
            wait_for(stream, event.recorded);
        }
    });
}

// -------------------------------------------------------------------------------------------------------- events
STAND_IN CUresult cuEventCreate(CUevent* made, unsigned) {
    return call("cuEventCreate", Needs::WORK, [&] {
        *made = driver.events.add(std::make_unique<Event>(Event{&current_context(), nullptr, nullptr}));
    });
}

STAND_IN CUresult cuEventDestroy_v2(CUevent handle) {
    return release("cuEventDestroy", Needs::WORK, [&] { driver.events.remove(handle); });
}

STAND_IN CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    return call("cuEventRecord", Needs::WORK, [&] {
        Event& event = driver.events.at(handle);
        Stream& stream = stream_at(stream_handle);
        require(event.context == stream.context, CUDA_ERROR_INVALID_HANDLE, "event and stream are of two contexts");
        event.capture = stream.capture;
        event.recorded_on = stream_handle;
        if (stream.capture) return;
        queue(stream, "an event", [] {});
        event.recorded = stream.last;
    });
}

STAND_IN CUresult cuEventSynchronize(CUevent handle) {
    return call("cuEventSynchronize", Needs::WORK, [&] {
        Event& event = driver.events.at(handle);
        require(!event.capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the event was recorded in a capture");
        finish(event.recorded);
    });
}

STAND_IN CUresult cuEventQuery(CUevent handle) {
    return query("cuEventQuery", [&] { return driver.events.at(handle).recorded; });
}

STAND_IN CUresult cuEventElapsedTime(float* ms, CUevent start, CUevent stop) { return elapsed(ms, start, stop); }
STAND_IN CUresult cuEventElapsedTime_v2(float* ms, CUevent start, CUevent stop) { return elapsed(ms, start, stop); }

// ------------------------------------------------------------------------------------------------------- capture
void refuse_capture(Context& context, const char* what) {
    bool captures = false;
    each_stream(context, [&](Stream& stream) {
        if (!stream.capture) return;
        captures = true;
        stream.capture->invalid = true;
    });
    if (captures) fail(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, std::string(what) + ", while a stream captures");
}

STAND_IN CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode) {
    return call("cuStreamBeginCapture", Needs::WORK, [&] {
        require(handle && handle != CU_STREAM_LEGACY, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                "the legacy stream cannot capture");
        Stream& stream = stream_at(handle);
        require(!stream.capture, CUDA_ERROR_INVALID_VALUE, "the stream captures already");
        stream.capture = std::make_shared<Graph>();
        stream.capture->streams = {handle};
    });
}

STAND_IN CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    return call("cuStreamIsCapturing", Needs::WORK, [&] {
        Stream& stream = handle ? driver.streams.at(handle) : current_context().legacy;
        *status = !stream.capture           ? CUstreamCaptureStatus(CU_STREAM_CAPTURE_STATUS_NONE)
                  : stream.capture->invalid ? CUstreamCaptureStatus(CU_STREAM_CAPTURE_STATUS_INVALIDATED)
                                            : CUstreamCaptureStatus(CU_STREAM_CAPTURE_STATUS_ACTIVE);
    });
}

STAND_IN CUresult cuStreamEndCapture(CUstream handle, CUgraph* made) {
    return call("cuStreamEndCapture", Needs::WORK, [&] {
        Stream& stream = driver.streams.at(handle);
        *made = nullptr;
        std::shared_ptr<Graph> graph = stream.capture;
        require(graph && graph->streams.front() == handle, CUDA_ERROR_INVALID_VALUE, "the stream began no capture");
        for (CUstream each : graph->streams)
            if (Stream* one = driver.streams.find(each)) one->capture = nullptr;
        require(!graph->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "something that a capture forbids was called");
        for (CUstream each : graph->streams)
            require(each == handle || takes_part(graph->joined, each), CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                    "a stream took part and was not waited for");
        *made = driver.graphs.add(std::make_unique<std::shared_ptr<Graph>>(graph));
    });
}

STAND_IN CUresult cuGraphInstantiateWithFlags(CUgraphExec* made, CUgraph graph, unsigned long long) {
    return call("cuGraphInstantiate", Needs::WORK, [&] {
        *made = driver.executables.add(std::make_unique<std::shared_ptr<Graph>>(driver.graphs.at(graph)));
    });
}

STAND_IN CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream) {
    return call("cuGraphLaunch", Needs::WORK, [&] {
        std::shared_ptr<Graph> graph = driver.executables.at(handle);
        queue(stream_at(stream), "a graph", [graph] {
            for (auto& work : graph->work) work();
        });
    });
}

STAND_IN CUresult cuGraphDestroy(CUgraph handle) {
    return release("cuGraphDestroy", Needs::INIT, [&] { driver.graphs.remove(handle); });
}

STAND_IN CUresult cuGraphExecDestroy(CUgraphExec handle) {
    return release("cuGraphExecDestroy", Needs::INIT, [&] { driver.executables.remove(handle); });
}
