// Modules, functions and launches. What stands for machine code is a text that nvcc.py has written:
//
//     convbackprop stand-in cubin
//     runtime /path/of/the/cpu/runtime.so
//     object /path/of/the/kernels.so
//     kernel forward threads 256 registers 40 shared 0 offsets 0 8 16 24 88       (where a real nvcc told so)
//
// The object is compiled from the .cu with the cuda device's constants, as for the cpu device, and linked with a
// runtime of its own, so that the cpu device may be at work in the same process.

#include <dlfcn.h>
#include <string.h>

#include <sstream>

#include "stand_in.h"

namespace {

const char MAGIC[] = "convbackprop stand-in cubin\n";

void* open_library(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    if (!library) fail(CUDA_ERROR_INVALID_IMAGE, dlerror());
    return library;
}

// The runtime that a module's objects are linked with; one for each file of it.
const Runtime* runtime_of(const std::string& path) {
    static std::map<std::string, Runtime> loaded;
    Runtime& runtime = loaded[path];
    if (!runtime.launch) {
        void* library = open_library(path);
        runtime.launch = reinterpret_cast<decltype(runtime.launch)>(dlsym(library, "convbackprop_launch"));
        runtime.error = reinterpret_cast<decltype(runtime.error)>(dlsym(library, "convbackprop_error"));
        require(runtime.launch && runtime.error, CUDA_ERROR_INVALID_IMAGE, "the runtime is none");
    }
    return &runtime;
}

void load(CUmodule* made, const char* image) {
    require(image, CUDA_ERROR_INVALID_VALUE, "no image");
    if (!strncmp(image, "\177ELF", 4)) fail(CUDA_ERROR_NO_BINARY_FOR_GPU, "machine code of a real GPU");
    require(!strncmp(image, MAGIC, strlen(MAGIC)), CUDA_ERROR_INVALID_IMAGE, "this is no cubin of the stand-in's");
    auto module = std::make_unique<Module>(Module{&current_context(), nullptr, nullptr, image, {}});
    std::istringstream lines(image + strlen(MAGIC));
    for (std::string word, path; lines >> word;) {
        if (word == "runtime" && lines >> path) module->runtime = runtime_of(path);
        if (word == "object" && lines >> path) module->library = open_library(path);
        std::getline(lines, path);
    }
    require(module->library && module->runtime, CUDA_ERROR_INVALID_IMAGE, "the image is cut off");
    *made = driver.modules.add(std::move(module));
}

// Where the parameters lie in the buffer of a launch: each at a multiple of its size, a struct of 4 bytes.
std::vector<unsigned> offsets_of(const std::vector<unsigned>& sizes) {
    std::vector<unsigned> offsets;
    unsigned end = 0;
    for (unsigned size : sizes) {
        const unsigned alignment = size == 1 || size == 2 || size == 8 ? size : 4;
        offsets.push_back((end + alignment - 1) / alignment * alignment);
        end = offsets.back() + size;
    }
    return offsets;
}

// What nvcc said of a kernel, over what the host compiler knows.
void read_facts(Function& function, const std::string& image) {
    std::istringstream lines(image);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string word, name;
        if (!(words >> word >> name) || word != "kernel" || name != function.name) continue;
        std::string threads, registers, shared, offsets;
        words >> threads >> function.max_threads >> registers >> function.registers >> shared >>
            function.static_shared >> offsets;
        function.offsets.clear();
        for (unsigned offset; words >> offset;) function.offsets.push_back(offset);
    }
}

struct Geometry {
    unsigned grid[3], block[3];
    size_t shared_bytes;
};

void check_geometry(const Function& function, const Geometry& at) {
    const unsigned grid_limit[3] = {0x7fffffff, 65535, 65535}, block_limit[3] = {1024, 1024, 64};
    size_t threads = 1;
    for (int i = 0; i < 3; ++i) {
        require(at.grid[i] && at.block[i], CUDA_ERROR_INVALID_VALUE, "a grid or block without extent");
        require(at.grid[i] <= grid_limit[i], CUDA_ERROR_INVALID_VALUE, "the grid is too large");
        require(at.block[i] <= block_limit[i], CUDA_ERROR_INVALID_VALUE, "the block is too large");
        threads *= at.block[i];
    }
    require(threads <= 1024, CUDA_ERROR_INVALID_VALUE, "the block has too many threads");
    require(threads <= size_t(function.max_threads), CUDA_ERROR_INVALID_VALUE,
            "the block has more threads than the kernel was compiled for");
    require(threads * size_t(function.registers) <= 65536, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            "the block needs more registers than there are");
    require(at.shared_bytes <= size_t(function.max_dynamic_shared - function.static_shared) ||
                at.shared_bytes + size_t(function.static_shared) <= 48 * 1024,
            CUDA_ERROR_INVALID_VALUE, "more shared memory than the function's attribute allows");
}

// The bytes of each parameter, from a buffer or from pointers to them.
std::vector<std::string> arguments_of(const Function& function, void** parameters, void** extra) {
    std::vector<std::string> values;
    const char* buffer = nullptr;
    size_t bytes = 0;
    for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
        if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = static_cast<const char*>(extra[1]);
        else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<const size_t*>(extra[1]);
        else fail(CUDA_ERROR_INVALID_VALUE, "an unknown entry in extra");
    }
    require(!parameters || !buffer, CUDA_ERROR_INVALID_VALUE, "the arguments are given twice");
    const auto& sizes = function.sizes;
    if (!parameters) {
        const size_t expected = sizes.empty() ? 0 : function.offsets.back() + sizes.back();
        if (bytes != expected)
            fail(CUDA_ERROR_INVALID_VALUE, "arguments of " + std::to_string(bytes) + " bytes for parameters of " +
                                               std::to_string(expected));
    }
    for (size_t i = 0; i < sizes.size(); ++i)
        values.emplace_back(parameters ? static_cast<const char*>(parameters[i]) : buffer + function.offsets[i],
                            sizes[i]);
    return values;
}

// Every parameter of 8 bytes is an array, and one of a tensor map's size begins with the address of one: it becomes the
// host's, if the kernel could reach it.
void translate(std::string& value, const Context& context, size_t index) {
    CUdeviceptr address;
    memcpy(&address, value.data(), sizeof address);
    if (!address || driver.of_host.count(reinterpret_cast<const void*>(address))) return;
    const std::string which = "argument " + std::to_string(index);
    Allocation* allocation = allocation_at(address);
    if (!allocation && driver.shares_host_memory) return;
    if (!allocation) fail(CUDA_ERROR_ILLEGAL_ADDRESS, which + " is no device memory: it was freed, or is the host's");
    if (allocation->context->device != context.device)
        fail(CUDA_ERROR_ILLEGAL_ADDRESS, which + " is memory of another device");
    if (allocation->context != &context)
        fail(CUDA_ERROR_ILLEGAL_ADDRESS, which + " is memory of another context");
    char* host = allocation->host + (address - allocation->begin);
    memcpy(&value[0], &host, sizeof host);
}

void run(const Function& function, const Context& context, const Geometry& at, std::vector<std::string> values) {
    const Module* module = driver.modules.find(function.module);
    require(module, CUDA_ERROR_ILLEGAL_INSTRUCTION, "its module was unloaded before it ran");
    std::vector<void*> args;
    for (size_t i = 0; i < values.size(); ++i) {
        if (values[i].size() == 8 || values[i].size() == sizeof(CUtensorMap)) translate(values[i], context, i);
        args.push_back(&values[i][0]);
    }
    ConvbackpropLaunch launch{};
    launch.entry = function.entry;
    launch.args = args.data();
    memcpy(launch.grid, at.grid, sizeof at.grid);
    memcpy(launch.block, at.block, sizeof at.block);
    launch.shared_bytes = at.shared_bytes;
    launch.workers = 1;
    if (module->runtime->launch(&launch, 0) != FINISHED) fail(CUDA_ERROR_LAUNCH_FAILED, module->runtime->error());
    const std::string broken = broken_guard(context.device);
    if (!broken.empty()) fail(CUDA_ERROR_ILLEGAL_ADDRESS, "it wrote " + broken);
}

}  // namespace

void forget_modules(Context& context) {
    std::vector<CUmodule> of_context;
    for (auto& [handle, module] : driver.modules.things)
        if (module->context == &context) of_context.push_back(handle);
    for (CUmodule handle : of_context) {
        for (auto& [name, function] : driver.modules.at(handle).functions) driver.functions.remove(function);
        driver.modules.remove(handle);
    }
}

// ------------------------------------------------------------------------------------------------------- modules
STAND_IN CUresult cuModuleLoadData(CUmodule* made, const void* image) {
    return call("cuModuleLoadData", Needs::WORK, [&] { load(made, static_cast<const char*>(image)); });
}

STAND_IN CUresult cuModuleLoadDataEx(CUmodule* made, const void* image, unsigned count, CUjit_option* options,
                                     void** values) {
    for (unsigned i = 0; i < count; ++i) {  // nothing is compiled, so that there is nothing to say
        if (int(options[i]) == CU_JIT_ERROR_LOG_BUFFER) *static_cast<char*>(values[i]) = 0;
        if (int(options[i]) == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES ||
            int(options[i]) == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
            values[i] = nullptr;
    }
    return call("cuModuleLoadDataEx", Needs::WORK, [&] { load(made, static_cast<const char*>(image)); });
}

STAND_IN CUresult cuModuleUnload(CUmodule handle) {
    return release("cuModuleUnload", Needs::WORK, [&] {
        // The objects stay loaded: work that is queued tells of the mistake instead of running into it.
        for (auto& [name, function] : driver.modules.at(handle).functions) driver.functions.remove(function);
        driver.modules.remove(handle);
    });
}

STAND_IN CUresult cuModuleGetFunction(CUfunction* made, CUmodule handle, const char* name) {
    return call("cuModuleGetFunction", Needs::WORK, [&] {
        Module& module = driver.modules.at(handle);
        auto known = module.functions.find(name);
        if (known != module.functions.end()) {
            *made = known->second;
            return;
        }
        auto function = std::make_unique<Function>();
        function->module = handle;
        function->name = name;
        function->entry =
            reinterpret_cast<void (*)(void**)>(dlsym(module.library, (function->name + "_entry").c_str()));
        auto sizes = reinterpret_cast<const unsigned* (*)()>(
            dlsym(module.library, (function->name + "_parameter_sizes").c_str()));
        require(function->entry && sizes, CUDA_ERROR_NOT_FOUND, "the module has no such kernel");
        for (const unsigned* size = sizes(); *size; ++size) function->sizes.push_back(*size);
        function->offsets = offsets_of(function->sizes);
        read_facts(*function, module.image);
        require(function->offsets.size() == function->sizes.size(), CUDA_ERROR_INVALID_IMAGE,
                "nvcc and the host compiler disagree on the kernel's parameters");
        *made = module.functions[name] = driver.functions.add(std::move(function));
    });
}

STAND_IN CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
    return call("cuFuncGetAttribute", Needs::WORK, [&] {
        const Function& function = driver.functions.at(handle);
        const int which = int(attribute);
        if (which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) *value = function.max_threads;
        else if (which == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) *value = function.static_shared;
        else if (which == CU_FUNC_ATTRIBUTE_NUM_REGS) *value = function.registers;
        else if (which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) *value = function.max_dynamic_shared;
        else *value = 0;
    });
}

STAND_IN CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
    return call("cuFuncSetAttribute", Needs::WORK, [&] {
        Function& function = driver.functions.at(handle);
        require(int(attribute) == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CUDA_ERROR_INVALID_VALUE,
                "this attribute cannot be set");
        require(value >= 0 && value + function.static_shared <= 227 * 1024, CUDA_ERROR_INVALID_VALUE,
                "more shared memory than a block can have");
        function.max_dynamic_shared = value;
    });
}

// ------------------------------------------------------------------------------------------------------ launches
// The first of these is deprecated, and PyCUDA calls it before each prepared launch; cuLaunchKernel takes no notice.
STAND_IN CUresult cuFuncSetBlockShape(CUfunction handle, int x, int y, int z) {
    return call("cuFuncSetBlockShape", Needs::WORK, [&] {
        driver.functions.at(handle);
        require(x > 0 && y > 0 && z > 0 && x <= 1024 && y <= 1024 && z <= 64 && x * y * z <= 1024,
                CUDA_ERROR_INVALID_VALUE, "no block can have this shape");
    });
}

STAND_IN CUresult cuFuncSetSharedSize(CUfunction handle, unsigned) {
    return call("cuFuncSetSharedSize", Needs::WORK, [&] { driver.functions.at(handle); });
}

STAND_IN CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                 unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                 CUstream stream, void** parameters, void** extra) {
    return call("cuLaunchKernel", Needs::WORK, [&] {
        Context& context = current_context();
        const Function& function = driver.functions.at(handle);
        note(function.name);
        require(driver.modules.at(function.module).context == &context, CUDA_ERROR_INVALID_CONTEXT,
                "the function was loaded in another context");
        const Geometry at{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
        check_geometry(function, at);
        auto values = arguments_of(function, parameters, extra);
        const CUcontext where = context.handle;
        queue(stream_at(stream), function.name.c_str(), [function, where, at, values = std::move(values)] {
            run(function, driver.contexts.at(where), at, values);
        });
    });
}
