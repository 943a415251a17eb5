/* SPDX-License-Identifier: Apache-2.0 */
/* What we claim of the methods of the private classes, as protocols that the compiler checks our calls by.

   Classes are looked up by name, so nothing private is linked.  Before the first call each claim is compared with the type that
   the runtime has for the method, because a wrong one would corrupt memory silently.  Names of classes and methods come from
   public reports; docs/ane_bridge.md tells what is assumed. */
#ifndef NF_ANE_BRIDGE_CLAIMS_H
#define NF_ANE_BRIDGE_CLAIMS_H

#import <Foundation/Foundation.h>

#include "../core/status.h"

struct __IOSurface;

@protocol NFDescriptorClass
+ (id)modelWithMILText:(NSData *)text weights:(NSDictionary *)weights optionsPlist:(NSData *)options;
@end

@protocol NFModelClass
+ (id)inMemoryModelWithDescriptor:(id)descriptor;
@end

@protocol NFModel
- (NSString *)hexStringIdentifier;
- (BOOL)compileWithQoS:(unsigned int)qos options:(NSDictionary *)options error:(NSError **)error;
- (BOOL)loadWithQoS:(unsigned int)qos options:(NSDictionary *)options error:(NSError **)error;
- (BOOL)evaluateWithQoS:(unsigned int)qos options:(NSDictionary *)options request:(id)request error:(NSError **)error;
- (BOOL)unloadWithQoS:(unsigned int)qos error:(NSError **)error;
- (id)model;
@end

/* Without these there is no cache. */
@protocol NFCachedModel
- (void)setModelURL:(NSURL *)url;
- (BOOL)compiledModelExists;
- (void)purgeCompiledModel;
@end

@protocol NFInnerModel
- (NSDictionary *)modelAttributes;
@end

@protocol NFRequestClass
+ (id)requestWithInputs:(NSArray *)inputs
           inputIndices:(NSArray *)inputIndices
                outputs:(NSArray *)outputs
          outputIndices:(NSArray *)outputIndices
          weightsBuffer:(id)weights
              perfStats:(id)stats
         procedureIndex:(NSNumber *)procedure;
@end

@protocol NFSurfaceObjectClass
+ (id)objectWithIOSurface:(struct __IOSurface *)surface;
@end

/* A public class of macOS, looked up like the others so that one path serves everywhere. */
@protocol NFSurface
- (id)initWithProperties:(NSDictionary *)properties;
- (void *)baseAddress;
- (NSInteger)allocationSize;
- (int)lockWithOptions:(uint32_t)options seed:(uint32_t *)seed;
- (int)unlockWithOptions:(uint32_t)options seed:(uint32_t *)seed;
@end

@protocol NFDeviceInfoText
+ (NSString *)aneArchitectureType;
+ (NSString *)aneSubType;
@end
@protocol NFDeviceInfoCounts
+ (unsigned int)numANECores;
+ (unsigned int)numANEs;
@end
@protocol NFDeviceInfoFlags
+ (BOOL)hasANE;
+ (BOOL)isVirtualMachine;
@end

/* Compare every method of the protocol with that of the class itself (`of_class`) or of its instances. */
nf_status nf_ane_check_methods(Class class, Protocol *protocol, int of_class);

#endif
