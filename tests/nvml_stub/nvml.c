/* A stub of NVIDIA's libnvidia-ml.so.1. Its answers stand in the file machine.txt beside the library, which every call
   reads again; nvml_stub.py writes it:

       init 0                  what nvmlInit returns
       driver 580.65.06        the machine's own answers, before the first GPU
       gpu                     begins a GPU; the lines that follow are its answers, each "KEY VALUE"
       name NVIDIA H200
       energy !3               returns the error 3
       process 1234 1000       a process and its bytes; "self" is the one that calls, -1 is NVML_VALUE_NOT_AVAILABLE
       slice                   begins a MIG slice of the GPU; its answers follow

   A call whose answer is not in the file returns NVML_ERROR_NOT_SUPPORTED. A GPU with the line "always !15" returns
   that error from every call. Signatures, structures and numbers are those of nvml.h of CUDA 13. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK, UNINITIALIZED, INVALID, NOT_SUPPORTED, NOT_FOUND = 6, TOO_SMALL = 7, OTHER_VERSION = 25, UNKNOWN = 999 };
typedef size_t Device; /* 0 is the machine, 256 the first GPU, 257 its first slice */
typedef unsigned long long Wide;
typedef struct { Wide total, free, used; } Memory;
typedef struct { unsigned version; Wide total, reserved, free, used; } MemoryV2;
typedef struct { unsigned pid; Wide bytes; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned field, scope; long long when, latency; unsigned type; int result; Wide value; } Field;
typedef struct { unsigned sms, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices; Wide memory_mib; } Attributes;
typedef struct { unsigned version, sensor; int celsius; } Temperature;
typedef struct { Wide reference_ns, violation_ns; } Violation;
static int users;

/* The nth answer (from 0) of a device under a key; without a key, whether there is such a device. */
static int find(Device device, const char *key, int nth, char value[128]) {
    char path[4096], line[256];
    Device at = 0;
    int result = device ? INVALID : NOT_SUPPORTED, found = 0, here;
    Dl_info own;
    dladdr((void *)find, &own);
    snprintf(path, sizeof path, "%.*s/machine.txt", (int)(strrchr(own.dli_fname, '/') - own.dli_fname), own.dli_fname);
    FILE *file = fopen(path, "r");
    if (!file) return UNKNOWN;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "gpu")) at = (at / 256 + 1) * 256;
        if (!strcmp(line, "slice")) at++;
        here = at == device;
        if (here && result == INVALID) result = key ? NOT_SUPPORTED : OK;
        if (at && at == device / 256 * 256 && !strncmp(line, "always !", 8)) { result = atoi(line + 8); break; }
        if (key && here && !found && !strncmp(line, key, strlen(key)) && line[strlen(key)] == ' ' && !nth--) {
            strcpy(value, line + strlen(key) + 1);
            result = *value == '!' ? atoi(value + 1) : OK;
            found = 1;
        }
    }
    fclose(file);
    return result;
}

static int text(Device device, const char *key, char *value, unsigned length) {
    char answer[128];
    int result = users ? find(device, key, 0, answer) : UNINITIALIZED;
    if (result) return result;
    if (strlen(answer) >= length) return TOO_SMALL;
    strcpy(value, answer);
    return OK;
}

static int number(Device device, const char *key, Wide *value) {
    char answer[128];
    int result = text(device, key, answer, sizeof answer);
    if (!result) *value = strtoull(answer, NULL, 0);
    return result;
}

#define NUMBER(function, type, key) \
    int function(Device device, type *value) { \
        Wide wide; \
        int result = number(device, key, &wide); \
        if (!result) *value = (type)wide; \
        return result; \
    }

int nvmlInitWithFlags(unsigned flags) {
    char answer[128];
    int result = find(0, "init", 0, answer);
    (void)flags;
    if (!result) result = atoi(answer);
    if (!result) users++;
    return result;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return users ? (users--, OK) : UNINITIALIZED; }
const char *nvmlErrorString(int result) { return result ? "an error of the stub" : "Success"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) { return text(0, "driver", version, length); }
int nvmlSystemGetNVMLVersion(char *version, unsigned length) { return text(0, "nvml", version, length); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    Wide wide;
    int result = number(0, "cuda", &wide);
    if (!result) *version = (int)wide;
    return result;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!users) return UNINITIALIZED;
    for (*count = 0; find((*count + 1) * 256, NULL, 0, NULL) != INVALID;) ++*count;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    *device = (index + (Device)1) * 256;
    return users ? find(*device, NULL, 0, NULL) : UNINITIALIZED;
}
int nvmlDeviceGetMigDeviceHandleByIndex(Device parent, unsigned index, Device *device) {
    int result = find(*device = parent + index + 1, NULL, 0, NULL);
    return parent % 256 ? INVALID : result == INVALID ? NOT_FOUND : result;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) { /* a slice's older spelling too, as of R470 */
    char own[128], gpu[128], instance[2][128], older[512];
    if (!users) return UNINITIALIZED;
    for (Device first = 256; find(first, NULL, 0, NULL) != INVALID; first += 256)
        for (*device = first; !find(*device, NULL, 0, NULL); ++*device) {
            if (!find(*device, "uuid", 0, own) && !strcmp(own, uuid)) return OK;
            if (find(first, "uuid", 0, gpu) || find(*device, "gpu_instance", 0, instance[0])) continue;
            if (find(*device, "compute_instance", 0, instance[1])) continue;
            snprintf(older, sizeof older, "MIG-%s/%s/%s", gpu, instance[0], instance[1]);
            if (!strcmp(older, uuid)) return OK;
        }
    return NOT_FOUND;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device slice, Device *device) {
    *device = slice / 256 * 256;
    return slice % 256 ? find(slice, NULL, 0, NULL) : INVALID;
}
int nvmlDeviceIsMigDeviceHandle(Device device, unsigned *is) { return *is = device % 256 != 0, OK; }
int nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned *count) {
    Wide on = 0;
    int result = number(device, "mig", &on);
    *count = on ? 7 : 0;
    return result == NOT_SUPPORTED ? OK : result;
}
int nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
    Wide on;
    int result = number(device, "mig", &on);
    if (!result) *current = *pending = (unsigned)on;
    return result;
}
NUMBER(nvmlDeviceGetGpuInstanceId, unsigned, "gpu_instance")
NUMBER(nvmlDeviceGetComputeInstanceId, unsigned, "compute_instance")
int nvmlDeviceGetAttributes_v2(Device device, Attributes *attributes) {
    Wide sms, gpu_slices, compute_slices, total;
    int result = number(device, "sms", &sms);
    if (!result) result = number(device, "gpu_slices", &gpu_slices);
    if (!result) result = number(device, "compute_slices", &compute_slices);
    if (!result) result = number(device, "total", &total);
    if (!result)
        *attributes = (Attributes){.sms = (unsigned)sms, .gpu_slices = (unsigned)gpu_slices,
                                   .compute_slices = (unsigned)compute_slices, .memory_mib = total >> 20};
    return result;
}

int nvmlDeviceGetName(Device device, char *name, unsigned length) { return text(device, "name", name, length); }
int nvmlDeviceGetUUID(Device device, char *uuid, unsigned length) { return text(device, "uuid", uuid, length); }
int nvmlDeviceGetSerial(Device device, char *serial, unsigned length) { return text(device, "serial", serial, length); }
int nvmlDeviceGetIndex(Device device, unsigned *index) {
    return *index = (unsigned)(device % 256 ? device % 256 - 1 : device / 256 - 1), find(device, NULL, 0, NULL);
}
int nvmlDeviceGetCudaComputeCapability(Device device, int *major, int *minor) {
    char answer[128];
    int result = text(device, "capability", answer, sizeof answer);
    if (!result) sscanf(answer, "%d.%d", major, minor);
    return result;
}

int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    int result = number(device, "total", &memory->total);
    if (!result) result = number(device, "used", &memory->used);
    if (!result) memory->free = memory->total - memory->used;
    return result;
}
int nvmlDeviceGetMemoryInfo_v2(Device device, MemoryV2 *memory) {
    Wide reserved = 0;
    int result = number(device, "total", &memory->total);
    if (memory->version != (sizeof *memory | 2 << 24)) return OTHER_VERSION;
    if (!result) result = number(device, "used", &memory->used);
    if (!result) (void)number(device, "reserved", &reserved);
    memory->reserved = reserved;
    if (!result) memory->used -= reserved, memory->free = memory->total - memory->used - reserved;
    return result;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, Process *processes) {
    char answer[128];
    Wide gpu_instance = -1, compute_instance = -1;
    unsigned room = processes ? *count : 0;
    int result = users ? find(device, "processes", 0, answer) : UNINITIALIZED; /* an error instead of a list */
    if (result != NOT_SUPPORTED) return result;
    (void)number(device, "gpu_instance", &gpu_instance);
    (void)number(device, "compute_instance", &compute_instance);
    for (*count = 0; !find(device, "process", *count, answer); ++*count) {
        Wide bytes = strtoull(strchr(answer, ' '), NULL, 0);
        unsigned pid = strncmp(answer, "self ", 5) ? (unsigned)atoi(answer) : (unsigned)getpid();
        if (*count < room) processes[*count] = (Process){pid, bytes, (unsigned)gpu_instance, (unsigned)compute_instance};
    }
    return *count > room ? TOO_SMALL : OK;
}
int nvmlDeviceGetComputeRunningProcesses_v2(Device device, unsigned *count, Process *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, processes);
}

static int clock_of(Device device, const char *prefix, unsigned clock, unsigned *mhz) {
    char key[64];
    Wide wide;
    snprintf(key, sizeof key, "%s%u", prefix, clock); /* NVML_CLOCK_SM is 1, NVML_CLOCK_MEM is 2 */
    int result = number(device, key, &wide);
    if (!result) *mhz = (unsigned)wide;
    return result;
}
int nvmlDeviceGetClockInfo(Device device, unsigned clock, unsigned *mhz) { return clock_of(device, "clock_", clock, mhz); }
int nvmlDeviceGetMaxClockInfo(Device device, unsigned clock, unsigned *mhz) { return clock_of(device, "max_clock_", clock, mhz); }
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, Wide, "event_reasons")
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, Wide, "event_reasons")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, "power_limit")
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned, "power_limit")
NUMBER(nvmlDeviceGetPowerUsage, unsigned, "power")
NUMBER(nvmlDeviceGetPersistenceMode, unsigned, "persistence")
NUMBER(nvmlDeviceGetTotalEnergyConsumption, Wide, "energy")
int nvmlDeviceGetTemperature(Device device, unsigned sensor, unsigned *celsius) {
    Wide wide;
    int result = sensor ? INVALID : number(device, "temperature", &wide);
    if (!result) *celsius = (unsigned)wide;
    return result;
}
int nvmlDeviceGetTemperatureV(Device device, Temperature *temperature) {
    if (temperature->version != (sizeof *temperature | 1 << 24)) return OTHER_VERSION;
    return nvmlDeviceGetTemperature(device, temperature->sensor, (unsigned *)&temperature->celsius);
}
int nvmlDeviceGetViolationStatus(Device device, unsigned policy, Violation *violation) {
    *violation = (Violation){0};
    return number(device, policy == 0 ? "field_74" : policy == 1 ? "field_269" : "", &violation->violation_ns);
}
int nvmlDeviceGetFieldValues(Device device, int count, Field *fields) {
    char key[64];
    int result = users ? find(device, NULL, 0, NULL) : UNINITIALIZED;
    for (int i = 0; !result && i < count; i++) {
        snprintf(key, sizeof key, "field_%u", fields[i].field);
        fields[i].type = 3; /* NVML_VALUE_TYPE_UNSIGNED_LONG_LONG */
        fields[i].result = number(device, key, &fields[i].value);
    }
    return result;
}
