// RMSNorm, forward and backward, in CUDA C++: what Triton's version does, with every step written out.
//
//     y = x * rstd * weight,   rstd = 1 / sqrt(mean(x^2) + eps)
//     dx = (g - n * mean(g * n)) * rstd,   dweight = sum over rows of dy * n,   with n = x * rstd, g = dy * weight
//
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019, arXiv:1910.07467).
//
// One block holds one row at a time. What Triton decides from the block's shape is said here by hand:
// - each thread loads 16 bytes at once (a Pack), neighbours next to each other, so that a warp reads 512
//   consecutive bytes;
// - a row's sum goes through registers, then shuffles inside a warp, then shared memory between warps;
// - the backward's blocks walk over the rows (one grid, as many blocks as the GPU holds) and keep their part of
//   dweight in registers; a second kernel adds the parts, in a fixed order.
// Only the CUDA headers are included, so that it compiles in seconds; Python calls the extern "C" functions.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

constexpr int WARP = 32;
constexpr int PACK_BYTES = 16;
constexpr int MAX_THREADS = 1024;

template <typename T>
struct alignas(PACK_BYTES) Pack {
    static constexpr int SIZE = PACK_BYTES / sizeof(T);
    T values[SIZE];
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) { return x; }
template <>
__device__ inline __half narrow<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// The sum of every thread's value, for every thread. Calls in a row must use two buffers in turn: then one
// barrier a call is enough, since nobody writes a buffer again before all have read it.
__device__ inline float block_sum(float value, float* buffer) {
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    if (threadIdx.x % WARP == 0) buffer[threadIdx.x / WARP] = value;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < blockDim.x / WARP; ++warp) total += buffer[warp];
    return total;
}

// PACKS: 16-byte loads of one thread in one row. `packs` is their number in a whole row.
template <typename T, int PACKS>
__global__ void __launch_bounds__(MAX_THREADS) forward_kernel(
    const Pack<T>* x, const Pack<T>* weight, Pack<T>* y, float* rstd_out, int packs, float eps) {
    __shared__ float buffer[WARP];
    constexpr int SIZE = Pack<T>::SIZE;
    const size_t row = blockIdx.x;
    Pack<T> held[PACKS];
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const int place = i * blockDim.x + threadIdx.x;
        if (place >= packs) continue;
        held[i] = x[row * packs + place];
#pragma unroll
        for (int j = 0; j < SIZE; ++j) square += widen(held[i].values[j]) * widen(held[i].values[j]);
    }
    const float rstd = rsqrtf(block_sum(square, buffer) / (packs * SIZE) + eps);
    if (threadIdx.x == 0) rstd_out[row] = rstd;
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const int place = i * blockDim.x + threadIdx.x;
        if (place >= packs) continue;
        const Pack<T> scale = weight[place];
        Pack<T> out;
#pragma unroll
        for (int j = 0; j < SIZE; ++j)
            out.values[j] = narrow<T>(widen(held[i].values[j]) * rstd * widen(scale.values[j]));
        y[row * packs + place] = out;
    }
}

template <typename T, int PACKS>
__global__ void __launch_bounds__(MAX_THREADS) backward_kernel(
    const Pack<T>* dy, const Pack<T>* x, const Pack<T>* weight, const float* rstd_in, Pack<T>* dx, float* parts,
    int rows, int packs) {
    __shared__ float buffers[2][WARP];
    constexpr int SIZE = Pack<T>::SIZE;
    float part[PACKS][SIZE] = {};
    int turn = 0;
    for (size_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
        Pack<T> held[PACKS], gradient[PACKS];
        const float rstd = rstd_in[row];
        float product = 0.0f;
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            const int place = i * blockDim.x + threadIdx.x;
            if (place >= packs) continue;
            held[i] = x[row * packs + place];
            gradient[i] = dy[row * packs + place];
            const Pack<T> scale = weight[place];
#pragma unroll
            for (int j = 0; j < SIZE; ++j) {
                const float normed = widen(held[i].values[j]) * rstd, g = widen(gradient[i].values[j]);
                part[i][j] += g * normed;
                product += g * widen(scale.values[j]) * normed;
            }
        }
        const float mean = block_sum(product, buffers[turn]) / (packs * SIZE);
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            const int place = i * blockDim.x + threadIdx.x;
            if (place >= packs) continue;
            const Pack<T> scale = weight[place];
            Pack<T> out;
#pragma unroll
            for (int j = 0; j < SIZE; ++j) {
                const float normed = widen(held[i].values[j]) * rstd;
                const float g = widen(gradient[i].values[j]) * widen(scale.values[j]);
                out.values[j] = narrow<T>((g - normed * mean) * rstd);
            }
            dx[row * packs + place] = out;
        }
    }
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const int place = i * blockDim.x + threadIdx.x;
        if (place >= packs) continue;
#pragma unroll
        for (int j = 0; j < SIZE; ++j) parts[((size_t)blockIdx.x * packs + place) * SIZE + j] = part[i][j];
    }
}

// A block adds WARP columns: a warp reads 32 neighbours of one part, the block's warps take parts in turn.
template <typename T>
__global__ void add_parts_kernel(const float* parts, T* dweight, int count, int columns) {
    __shared__ float sums[WARP][WARP + 1];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (column < columns)
        for (int part = warp; part < count; part += WARP) sum += parts[(size_t)part * columns + column];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < columns) {
        for (int other = 1; other < WARP; ++other) sum += sums[other][lane];
        dweight[column] = narrow<T>(sum);
    }
}

static int rounded(int threads) { return (threads + WARP - 1) / WARP * WARP; }

template <typename T>
static cudaError_t forward(
    const void* x, const void* weight, void* y, float* rstd, int rows, int columns, float eps, cudaStream_t stream) {
    const int packs = columns / Pack<T>::SIZE;
    const auto launch = [&](auto kernel, int each) {
        kernel<<<rows, rounded((packs + each - 1) / each), 0, stream>>>(
            (const Pack<T>*)x, (const Pack<T>*)weight, (Pack<T>*)y, rstd, packs, eps);
    };
    if (packs <= 256) launch(forward_kernel<T, 1>, 1);
    else if (packs <= 512) launch(forward_kernel<T, 2>, 2);
    else launch(forward_kernel<T, 4>, 4);
    return cudaGetLastError();
}

template <typename T>
static cudaError_t backward(
    const void* dy, const void* x, const void* weight, const float* rstd, void* dx, float* parts, void* dweight,
    int rows, int columns, int blocks, cudaStream_t stream) {
    const int packs = columns / Pack<T>::SIZE;
    const auto launch = [&](auto kernel, int each) {
        kernel<<<blocks, rounded((packs + each - 1) / each), 0, stream>>>(
            (const Pack<T>*)dy, (const Pack<T>*)x, (const Pack<T>*)weight, rstd, (Pack<T>*)dx, parts, rows, packs);
    };
    if (packs <= 512) launch(backward_kernel<T, 1>, 1);
    else launch(backward_kernel<T, 2>, 2);
    add_parts_kernel<T><<<(columns + WARP - 1) / WARP, WARP * WARP, 0, stream>>>(
        parts, (T*)dweight, blocks, columns);
    return cudaGetLastError();
}

// dtype: 0 float, 1 half, 2 bfloat16. Each returns a cudaError_t; 0 is success.
extern "C" int rms_norm_forward(
    int dtype, const void* x, const void* weight, void* y, float* rstd, int rows, int columns, float eps,
    void* stream) {
    const auto s = (cudaStream_t)stream;
    if (dtype == 0) return forward<float>(x, weight, y, rstd, rows, columns, eps, s);
    if (dtype == 1) return forward<__half>(x, weight, y, rstd, rows, columns, eps, s);
    return forward<__nv_bfloat16>(x, weight, y, rstd, rows, columns, eps, s);
}

extern "C" int rms_norm_backward(
    int dtype, const void* dy, const void* x, const void* weight, const float* rstd, void* dx, float* parts,
    void* dweight, int rows, int columns, int blocks, void* stream) {
    const auto s = (cudaStream_t)stream;
    if (dtype == 0) return backward<float>(dy, x, weight, rstd, dx, parts, dweight, rows, columns, blocks, s);
    if (dtype == 1) return backward<__half>(dy, x, weight, rstd, dx, parts, dweight, rows, columns, blocks, s);
    return backward<__nv_bfloat16>(dy, x, weight, rstd, dx, parts, dweight, rows, columns, blocks, s);
}
